"""Models that answer, elsewhere: other programs make the same tokens of a conversation and end the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from chat_models import answering_checkpoint
from command_line import cpulm
from llama_cpp import LlamaCpp
from small_exports import tokenizer_of
from small_models import a_model
from transformers import AutoTokenizer, GenerationConfig, pipeline

from cpulm.checkpoints.checkpoint import Checkpoint, save
from cpulm.checkpoints.load_model import load_model
from cpulm.data.records.chat import CHAT_TOKENS, knows_chat, messages_in
from cpulm.data.tokenizer import Tokenizer
from cpulm.generation.chat import encode_chat
from cpulm.settings import Settings

TALK: list[dict[str, str]] = [
    {"role": "system", "content": "return None"},
    {"role": "user", "content": "from the  error"},
    {"role": "assistant", "content": "import the\n"},
    {"role": "user", "content": "def value"},
]
WORDS = [{**message, "content": " ".join(message["content"].split())} for message in TALK]
KINDS = ["bpe", "byte", "char", "word"]
Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of random weights with each kind of tokenizer, exported once to each format."""
    runs: dict[str, Path] = {}

    def give(kind: str, to: str) -> Path:
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp("runs") / kind
            runs[kind].mkdir()
            tokenizer = tokenizer_of(kind).with_special_tokens(CHAT_TOKENS)
            model = a_model(tokenizer.vocab_size, n_embd=64, n_head=2, block_size=128)
            settings = Settings.model_validate({"model": model.settings.model_dump(), "data": {"chat": True}})
            json_text, size = tokenizer.to_json(), tokenizer.vocab_size
            save(
                Checkpoint(settings, json_text, size, True, dict(model.state_dict())), runs[kind] / "best.pt"
            )
        out = runs[kind] / f"out.{to}"
        if not out.exists():
            more = ("--quantize", "f32") if to == "gguf" else ()
            done = cpulm(runs[kind], "export", str(runs[kind]), "--to", to, "--out", str(out), *more)
            assert done.returncode == 0, done.stderr
        return out

    return give


def tokenizer_in(path: Path) -> Tokenizer:
    return load_model(path.parent, warn=pytest.fail)[1]


def expected(tokenizer: Tokenizer, talk: list[dict[str, str]]) -> list[int]:
    return encode_chat(tokenizer, messages_in(talk))


def test_the_texts_are_known() -> None:
    known = tokenizer_of("word").parts["model"]["vocab"]
    assert all(word in known for message in WORDS for word in message["content"].split())


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_makes_the_same_tokens(kind: str, exported: Exported) -> None:
    folder = exported(kind, "hf")
    ours = tokenizer_in(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    for count in range(1, len(TALK) + 1):
        found = theirs.apply_chat_template(TALK[:count], add_generation_prompt=True, return_dict=False)
        assert found == expected(ours, TALK[:count])
    whole = theirs.apply_chat_template(TALK[:3], return_dict=False)
    assert whole == expected(ours, TALK[:3])[:-1]
    end, eot = ours.inner.token_to_id("<|end|>"), ours.eot_id
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (end, eot, eot)
    assert set(GenerationConfig.from_pretrained(folder).eos_token_id) == {end, eot}
    with pytest.raises(Exception, match="the roles are system, user and assistant"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_makes_the_same_tokens(kind: str, exported: Exported) -> None:
    file = exported(kind, "gguf")
    ours, theirs = tokenizer_in(file), LlamaCpp(file, 128)
    talk = WORDS if kind == "word" else TALK
    assert theirs.encode_chat(talk) == expected(ours, talk)


def test_a_gguf_file_names_what_ends_an_answer_and_is_read_back(exported: Exported) -> None:
    for kind in KINDS:
        file = exported(kind, "gguf")
        fields = gguf.GGUFReader(file).fields
        ours = tokenizer_in(file)
        assert fields["tokenizer.ggml.eot_token_id"].contents() == ours.inner.token_to_id("<|end|>")
        assert fields["tokenizer.ggml.eos_token_id"].contents() == ours.eot_id
        assert "<|assistant|>" in fields["tokenizer.chat_template"].contents()
        for path in (file, exported(kind, "hf")):
            again = load_model(path, warn=lambda _: None)[1]
            assert knows_chat(again)
            assert expected(again, WORDS) == expected(ours, WORDS)


def test_ollama_gets_a_template_and_a_stop(exported: Exported) -> None:
    text = exported("bpe", "gguf").with_suffix(".Modelfile").read_text()
    template = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
    assert f'TEMPLATE """{template}"""\nPARAMETER stop "<|end|>"\n' in text


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_checkpoint(tmp_path_factory.mktemp("runs") / "talk" / "best.pt").parent


def test_its_answer_ends_everywhere(answering: Path, tmp_path: Path) -> None:
    for to in ("hf", "gguf"):
        done = cpulm(tmp_path, "export", str(answering), "--to", to, "--out", f"talk.{to}")
        assert done.returncode == 0, done.stderr
    talk = [{"role": "user", "content": "hi"}]
    write: Any = pipeline("text-generation", str(tmp_path / "talk.hf"))
    with torch.inference_mode():
        said = write(talk, max_new_tokens=30, do_sample=False)[0]["generated_text"]
    assert said[-1] == {"role": "assistant", "content": "abcde"}
    answer = LlamaCpp(tmp_path / "talk.gguf", 64).chat(talk, 30)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("abcde", "stop")


def test_its_page_talks(answering: Path, tmp_path: Path, browser: Any) -> None:
    done = cpulm(tmp_path, "export", str(answering), "--to", "page", "--out", "talk.html")
    assert done.returncode == 0, done.stderr
    page = browser.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))
    page.goto((tmp_path / "talk.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    page.fill("#temperature", "0")
    page.fill("#length", "20")
    for number in range(1, 6):
        page.fill("#message", "hello")
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.querySelectorAll('#talk div').length === {2 * number}")
        page.wait_for_selector("body:not(.writing)")
    assert page.inner_text("#talk").split() == ["hello", "abcde"] * 5
    assert "the model has forgotten the oldest messages" in page.inner_text("#status")
    page.fill("#message", "x" * 80)
    page.click("#send")
    page.wait_for_selector("#status.error:has-text('The message is too long')")
    assert "It learned to answer from conversations" in page.text_content("details")
    page.click("#clear")
    assert page.inner_text("#talk") == ""
    page.close()
    assert trouble == []


def test_the_next_command_talks(answering: Path, tmp_path: Path) -> None:
    commands = {"hf": "Hello", "gguf": "llama-server -m talk.gguf", "page": "open talk.page"}
    for to, command in commands.items():
        assert command in cpulm(tmp_path, "export", str(answering), "--to", to, "--out", f"talk.{to}").stderr
    card = (tmp_path / "talk.hf" / "README.md").read_text()
    assert "It was trained to answer in conversations" in card
    config = json.loads((tmp_path / "talk.hf" / "tokenizer_config.json").read_text())
    assert config["chat_template"].startswith("{{ bos_token }}")
