"""llama.cpp's server with a model that cpulm exported, on the loopback."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """llama.cpp in fp32 on one thread. The process keeps the server until it is garbage collected."""

    def __init__(self, gguf: Path, n_ctx: int) -> None:
        reason = "llama.cpp (xllamacpp) has no wheels for this system"
        xllamacpp = pytest.importorskip("xllamacpp", reason=reason)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx, parameters.n_parallel = n_ctx, 1
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.warmup = parameters.fit_params = False
        parameters.verbosity = -1
        parameters.use_jinja = True
        self._server = xllamacpp.Server(parameters)

    def _post(self, path: str, **request: Any) -> Any:
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        address = f"{self._server.listening_address}{path}"
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:
            return json.load(answer)

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``; none of it is read as a special token."""
        answer = self._post("/tokenize", content=text, add_special=False, parse_special=False)
        return [int(token) for token in answer["tokens"]]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens that a conversation becomes by the file's own template, which is Jinja's."""
        prompt = self._post("/apply-template", messages=list(messages))["prompt"]
        answer = self._post("/tokenize", content=prompt, add_special=True, parse_special=True)
        return [int(token) for token in answer["tokens"]]

    def chat(self, messages: Sequence[dict[str, str]], count: int) -> Any:
        """The likeliest answer, as OpenAI's choice."""
        request = {"messages": list(messages), "max_tokens": count, "temperature": 0.0}
        return self._post("/v1/chat/completions", **request)["choices"][0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        return str(self._post("/detokenize", tokens=list(ids))["content"])

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens behind ``prompt``."""
        answer = self._complete(prompt, n_predict=count, return_tokens=True, ignore_eos=False)
        return [int(token) for token in answer["tokens"]]

    def logprob(self, prompt: Sequence[int], following: int) -> float:
        """The logarithm of the probability of ``following`` behind ``prompt``."""
        everything = 1 << 16
        answer = self._complete(prompt, n_predict=1, n_probs=everything, cache_prompt=True)
        found = answer["completion_probabilities"][0]["top_logprobs"]
        return next(float(one["logprob"]) for one in found if one["id"] == following)

    def perplexity(self, ids: Sequence[int], first: int) -> float:
        """Of the tokens from number ``first`` on."""
        logprobs = [self.logprob(ids[:number], ids[number]) for number in range(first, len(ids))]
        return math.exp(-sum(logprobs) / len(logprobs))

    def _complete(self, prompt: Sequence[int], **request: Any) -> Any:
        return self._post("/completion", prompt=list(prompt), temperature=0.0, **request)
