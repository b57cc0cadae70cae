"""Conversations with the server, by OpenAI's own package and by its page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from chat_models import answering_checkpoint
from running_server import running

from cpulm.api.language_model import Model, load
from cpulm.serve.app import build_app
from cpulm.serve.written_text import ServedModel

KEY = "a-key"
TALK: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi <|end|>"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(answering_checkpoint(tmp_path_factory.mktemp("runs") / "talk" / "best.pt"))


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    served = ServedModel("talk", model._model, model._tokenizer, True, True, 1 << 30)
    with running(build_app(served, KEY)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_it_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "talk", "messages": TALK, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "abcde",
        "stop",
    )
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (1 + 11 + 12 + 1, 6)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "abcde"
    assert [delta.role for delta in deltas[:2]] == ["assistant", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    for more, wanted in (
        ({"max_tokens": 2}, ("ab", "length")),
        ({"max_completion_tokens": 3}, ("abc", "length")),
        ({"stop": "cd"}, ("ab", "stop")),
    ):
        cut = client.chat.completions.create(**asked, **more).choices[0]
        assert (cut.message.content, cut.finish_reason) == wanted
    assert [one.message.content for one in client.chat.completions.create(**asked, n=2).choices] == [
        "abcde"
    ] * 2


def test_the_seed_decides(client: openai.OpenAI) -> None:
    def said(seed: int) -> str:
        hot: dict[str, Any] = {"temperature": 1.9, "max_tokens": 20, "extra_body": {"top_k": 0}}
        made = client.chat.completions.create(model="talk", messages=TALK, seed=seed, **hot)
        return str(made.choices[0].message.content)

    assert said(1) == said(1) != said(2)


def test_its_log_probabilities_have_their_form(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "talk", "messages": TALK, "temperature": 0}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [token.token for token in found.content] == list("abcde")
    for token in found.content:
        assert [len(token.top_logprobs), token.top_logprobs[-1].token] == [2, token.token]
        assert token.logprob == max(one.logprob for one in token.top_logprobs)


def test_a_schema_is_obeyed_and_then_the_answer_ends(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    schema: Any = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["a", "abc"]}}}
    asked: dict[str, Any] = {"model": "talk", "messages": TALK, "temperature": 0, "max_tokens": 20}
    made = client.chat.completions.create(**asked, response_format=schema).choices[0]
    assert made.finish_reason == "stop"
    assert json.loads(made.message.content or "") in ("a", "abc")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [{"content": "hi"}]}, "message 1 has no role"),
        ({"messages": [*TALK, {"role": "tool", "content": "x"}]}, "message 3 has the role 'tool'"),
        ({"messages": [{"role": "user", "content": ""}]}, "its content is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": "x" * 90}]}, "the model sees 64"),
        ({"messages": TALK, "tools": []}, "there is no parameter 'tools'"),
        ({"messages": TALK, "response_format": {"type": "json_schema"}}, "json_schema is missing"),
    ],
)
def test_garbage_is_answered_in_openais_form(address: str, body: dict[str, Any], complaint: str) -> None:
    path = f"{address}/v1/chat/completions"
    head = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(path, content=json.dumps(body).encode(), headers=head, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert complaint in error["message"]


def test_its_page_talks_with_the_model(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/#key={KEY}")
    page.wait_for_selector("#send:enabled")
    page.fill("#temperature", "0")
    for number in range(1, 6):
        page.fill("#message", "hello")
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.querySelectorAll('#talk div').length === {2 * number}")
        page.wait_for_selector("body:not(.writing)")
    assert page.inner_text("#talk").split() == ["hello", "abcde"] * 5
    assert "the model has forgotten the oldest messages" in page.inner_text("#status")
    page.fill("#message", "x" * 80)
    page.click("#send")
    page.wait_for_selector("#status.error:has-text('the model sees 64')")
    assert page.input_value("#message") == "x" * 80
    page.click("#clear")
    assert page.inner_text("#talk") == ""
    page.close()
