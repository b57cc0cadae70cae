"""The server, asked by OpenAI's own package: it writes what the model writes, and survives garbage."""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from command_line import cpulm
from running_server import running
from small_exports import SmallTrained
from small_exports import trained as trained

from cpulm.api.language_model import Model, load
from cpulm.model.cache import KVCache
from cpulm.run_dir import RunDir
from cpulm.serve.app import build_app
from cpulm.serve.completion_request import MOST_TOKENS
from cpulm.serve.model_queue import MOST_JOBS
from cpulm.serve.server import HOST, open_port
from cpulm.serve.written_text import ServedModel

KEY = "a-key"
PROMPT = "def load("


@pytest.fixture(scope="module")
def run(trained: Callable[[str], SmallTrained]) -> Path:
    return trained("qwen3-bpe").run


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load(run)


@pytest.fixture(scope="module")
def address(model: Model, run: Path) -> Iterator[str]:
    served = ServedModel(run.name, model._model, model._tokenizer, True, False, 1 << 30)
    with running(build_app(served, KEY, RunDir(run))) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_it_writes_what_the_model_writes(client: openai.OpenAI, model: Model, run: Path) -> None:
    assert [one.id for one in client.models.list()] == [run.name]
    asked: dict[str, Any] = {"model": run.name, "prompt": PROMPT, "max_tokens": 20, "seed": 3}
    whole = client.completions.create(**asked)
    expected = model.generate(PROMPT, max_new_tokens=20, seed=3)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "length")
    usage = whole.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(model._tokenizer.encode(PROMPT)), 20)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected
    assert len(chunks) > 3
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == usage
    stopped = client.completions.create(**asked, stop=expected[5:7]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (expected[: expected.index(expected[5:7])], "stop")
    several = client.completions.create(**asked, n=2).choices
    assert several[0].text == expected
    assert several[1].text != expected
    colder = client.completions.create(**{**asked, "temperature": 0.0}, extra_body={"top_k": 3})
    assert colder.choices[0].text == model.generate(PROMPT, max_new_tokens=20, temperature=0)


def test_its_log_probabilities_are_the_models(client: openai.OpenAI, model: Model, run: Path) -> None:
    made = client.completions.create(model=run.name, prompt=PROMPT, max_tokens=4, temperature=0, logprobs=2)
    found = made.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert "".join(found.tokens) == made.choices[0].text
    for token, log, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == log == max(top.values())
        assert len(top) == 2
    prompt = torch.tensor([model._tokenizer.encode(PROMPT)])
    with torch.no_grad():  # with a cache, in the precision that texts are written in
        cache = KVCache(model._model.settings, 1, prompt.size(1))
        logits = model._model(prompt, cache=cache)[0, -1]
    assert found.token_logprobs[0] == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)


def test_a_schema_is_obeyed(client: openai.OpenAI, run: Path) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": {"enum": [12, 34]}}}
    extra = {"response_format": form}
    made = client.completions.create(model=run.name, prompt=PROMPT, max_tokens=20, extra_body=extra)
    assert made.choices[0].text in ("12", "34")
    assert made.choices[0].finish_reason == "stop"


BODY: dict[str, Any] = {"prompt": "a", "max_tokens": 2}


@pytest.mark.parametrize(
    ("body", "status", "complaint"),
    [
        (b"\xff{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[1]", 400, "JSON object"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413, "larger"),
        ({**BODY, "prompt": "\ud800"}, 400, "surrogate"),
        ({**BODY, "prompt": ["a", "b"]}, 400, "one prompt"),
        ({**BODY, "prompt": [10**6]}, 400, "tokens are 0 to"),
        ({**BODY, "prompt": "word " * 300}, 400, "the model sees 128"),
        ({**BODY, "prompt": {"a": 1}}, 400, "prompt"),
        ({**BODY, "max_tokens": MOST_TOKENS + 1}, 400, "max_tokens"),
        ({**BODY, "max_tokens": True}, 400, "max_tokens"),
        ({**BODY, "temperature": -1}, 400, "temperature = -1"),
        ({**BODY, "stop": ["", "a"]}, 400, "stop string is empty"),
        ({**BODY, "echo": True}, 400, "echo is not available"),
        ({**BODY, "tempreature": 1}, 400, "tempreature"),
        ({**BODY, "model": "gpt-4"}, 404, "no model 'gpt-4'"),
    ],
)
def test_garbage_is_answered_in_openais_form(
    address: str, body: bytes | dict[str, Any], status: int, complaint: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(
        f"{address}/v1/completions", content=content, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert complaint in error["message"]
    assert len(error["message"]) < 300


def test_strangers_are_refused(address: str, client: openai.OpenAI, run: Path) -> None:
    with pytest.raises(openai.AuthenticationError, match="key"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="another", max_retries=0).models.list()
    asked = {"Origin": "https://stranger.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{address}/v1/completions", headers=asked)
    assert preflight.status_code == 405
    assert not any(name.startswith("access-control") for name in preflight.headers)
    assert httpx.get(f"{address}/report").status_code == 401
    page = httpx.get(f"{address}/")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert KEY not in page.text
    assert httpx.get(f"{address}/etc/passwd").json()["error"]["message"] == "Not Found: GET /etc/passwd"
    with pytest.raises(openai.BadRequestError, match="was not trained on conversations"):
        client.chat.completions.create(model=run.name, messages=[{"role": "user", "content": "hi"}])


def test_clients_are_written_for_together(client: openai.OpenAI, model: Model, run: Path) -> None:
    """Whoever comes while others are written joins them, and each gets what it would get alone."""
    long: dict[str, Any] = {"model": run.name, "prompt": PROMPT, "max_tokens": MOST_TOKENS}
    with client.completions.create(**long, stream=True) as endless:
        next(iter(endless))
        with ThreadPoolExecutor(8) as clients:

            def asked(number: int) -> str:
                made = client.completions.create(
                    model=run.name,
                    prompt=PROMPT * (number % 3 + 1),
                    max_tokens=20,
                    seed=number,
                    n=1 + number % 2,
                )
                return made.choices[0].text

            found = list(clients.map(asked, range(8)))
    for number, text in enumerate(found):
        assert text == model.generate(PROMPT * (number % 3 + 1), max_new_tokens=20, seed=number)


def test_what_fails_or_does_not_fit_fails_alone(model: Model, run: Path) -> None:
    served = ServedModel(run.name, model._model, model._tokenizer, True, False, 1 << 18)
    asked: dict[str, Any] = {"model": run.name, "prompt": PROMPT, "max_tokens": 40}
    with running(build_app(served, KEY)) as address:
        client, later = (
            openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) for _ in range(2)
        )
        with pytest.raises(openai.BadRequestError, match="its keys and values would take"):
            client.completions.create(**asked, n=16)
        hook = model._model.register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            with pytest.raises(openai.InternalServerError, match="the server failed"):
                client.completions.create(**asked)
        finally:
            hook.remove()
        found = later.completions.create(**asked, seed=1).choices[0].text
        assert found == model.generate(PROMPT, max_new_tokens=40, seed=1)


def test_who_leaves_is_not_written_for(address: str, client: openai.OpenAI, run: Path) -> None:
    """16 texts of minutes are written or wait, one more is refused; all clients leave, and there is room."""
    long: dict[str, Any] = {"model": run.name, "prompt": PROMPT, "max_tokens": MOST_TOKENS, "n": 16}
    stream = client.completions.create(**long, stream=True)
    next(iter(stream))
    body = b'{"max_tokens": 16384, "n": 16}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    waiting = []
    for _ in range(MOST_JOBS):
        waiting.append(socket.create_connection((HOST, int(address.rpartition(":")[2]))))
        waiting[-1].sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answered, _, _ = select.select(waiting, [], [], 60)
    assert [one.recv(12) for one in answered] == [b"HTTP/1.1 429"]
    stream.close()
    for connection in waiting:
        connection.close()
    assert _written_within(client, run, seconds=60)


def _written_within(client: openai.OpenAI, run: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            return bool(client.completions.create(model=run.name, prompt=PROMPT, max_tokens=1).choices)
        except openai.RateLimitError:
            time.sleep(0.1)
    return False


def test_a_busy_port_and_a_missing_extra_are_one_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_port(0) as taken:
        port = str(taken.getsockname()[1])
        busy = cpulm(run, "serve", str(run), "--port", port)
    assert (busy.returncode, busy.stdout) == (2, "")
    assert busy.stderr == f"error: port {port} is in use\n hint: take a free one: --port 0\n"
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    missing = cpulm(run, "serve", str(run))
    assert missing.returncode == 2
    assert missing.stderr.endswith("hint: install it: pip install 'cpulm[serve]'\n")


def test_the_report_of_its_run_is_there_too(address: str) -> None:
    """This one has no log yet: the reason is told."""
    assert "watch.js" in httpx.get(f"{address}/watch").text
    asked = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.get(f"{address}/report", headers=asked, timeout=60)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"]


def test_its_page_writes_with_the_model(browser: Any, address: str, model: Model) -> None:
    page = browser.new_page()
    page.goto(f"{address}/#key={KEY}")
    page.wait_for_selector("#write:enabled")
    page.fill("#prompt", PROMPT)
    page.fill("#temperature", "0")
    page.fill("#length", "12")
    page.click("#write")
    page.wait_for_selector("#status:has-text('12 tokens')")
    assert page.inner_text("#text") == PROMPT + model.generate(PROMPT, max_new_tokens=12, temperature=0)
    page.goto("about:blank")
    page.goto(f"{address}/#key=another")
    page.wait_for_selector("#status.error")
    assert page.is_disabled("#write")
    page.close()
