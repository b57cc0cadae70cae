"""llama.cpp's own server (package xllamacpp) in a process of its own, timed by its own clock.

    python benchmarks/llama_server.py FILE.gguf THREADS ROWS CONTEXT

reads one JSON request a line from stdin and answers each with one: ``{"tokens": N, "count": M}`` reads a
prompt of N tokens and writes M, in ROWS texts at once.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class LlamaServer:
    """A server process with a model, for ``rows`` texts at once."""

    def __init__(self, gguf: Path, threads: int, rows: int, context: int) -> None:
        command = [sys.executable, __file__, str(gguf), str(threads), str(rows), str(context)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def seconds(self, tokens: int, count: int) -> tuple[float, float]:
        """Read a prompt and write ``count`` tokens in each text; the seconds of both."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"tokens": tokens, "count": count}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit(f"llama.cpp ended with {process.wait()}")
        read, wrote = json.loads(line)
        return read, wrote

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _server(gguf: str, threads: int, rows: int, context: int) -> Any:
    xllamacpp = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_ctx, parameters.n_parallel = context * rows, rows
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.fit_params = False
    parameters.verbosity = -1
    return xllamacpp.Server(parameters)


def main() -> None:
    gguf, *numbers = sys.argv[1:]
    threads, rows, context = map(int, numbers)
    server = _server(gguf, threads, rows, context)
    pool = ThreadPoolExecutor(rows)
    draw = random.Random(0)

    def complete(request: dict[str, Any]) -> Any:
        answer = server.handle_completions(request)
        if "timings" not in answer:
            raise RuntimeError(str(answer)[:500])
        return answer["timings"]

    for line in sys.stdin:
        asked = json.loads(line)
        prompt = [draw.randrange(60) for _ in range(asked["tokens"])]
        request = {
            "prompt": prompt,
            "n_predict": asked["count"],
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        began = time.perf_counter()
        timings = list(pool.map(complete, [request] * rows))
        wall = time.perf_counter() - began
        read = max(each["prompt_ms"] for each in timings) / 1000
        wrote = timings[0]["predicted_ms"] / 1000 if rows == 1 else wall - read
        print(json.dumps([read, wrote]), flush=True)


if __name__ == "__main__":
    main()
