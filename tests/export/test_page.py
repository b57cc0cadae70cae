"""The page that is a model, in a real browser: opened as a file, it writes what cpulm writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from command_line import cpulm
from small_exports import KINDS, SmallTrained
from small_models import a_model
from texts_of_all_kinds import texts

import cpulm.export.html_page as exporter
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.export.html_page import quantized_rows
from cpulm.generation.generate import Generation
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

Trained = Callable[[str], SmallTrained]
PROMPT = "def load(path: Path) -> Checkpoint:"
FILES = Path(exporter.__file__).with_name("page_files")


@contextmanager
def opened(
    browser: Browser,
    path: Path,
    width: int = 1200,
    scheme: Literal["light", "dark"] = "light",
    *,
    asked: bool = False,
) -> Iterator[Page]:
    """The page once it can write; whatever the console said, or the page asked a network for, is an error.

    Only if it is to be ``asked`` does it run scripts of the test, which its Content-Security-Policy forbids.
    """
    viewport: ViewportSize = {"width": width, "height": 800}
    page = browser.new_page(viewport=viewport, color_scheme=scheme, bypass_csp=asked)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    page.close()
    assert [one for one in trouble if one != "data:,"] == []


def written(page: Page, prompt: str, **fields: str) -> str:
    """What the page writes, the prompt included."""
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill(f"#{name.replace('_', '-')}", value)
    page.click("#write")
    page.wait_for_selector("body:not(.writing) #write", timeout=60_000)
    return str(page.text_content("#text"))


def as_stored(model: Transformer) -> Transformer:
    """The model with its matrices rounded as in the page."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and name != "wpe.weight":
                rounded, scales = quantized_rows(weight.numpy())
                values = (rounded.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(rounded.shape)
                weight.copy_(torch.tensor(values[:, : weight.shape[1]]))
    return model


def greedy(ours: SmallTrained, model: Transformer, count: int) -> str:
    ids = ours.tokenizer.encode(PROMPT)
    made = Generation(
        model,
        ids,
        max_new_tokens=count,
        sampling=Sampling(temperature=0.0),
        end_ids={ours.tokenizer.eot_id},
    )
    return ours.tokenizer.decode([*ids, *(int(tokens[0] or 0) for tokens in made)])


@pytest.mark.parametrize("name", KINDS)
def test_it_writes_the_same_greedy_text_as_cpulm(name: str, trained: Trained, browser: Browser) -> None:
    """Beyond the context, too."""
    ours = trained(name)
    expected = greedy(ours, as_stored(load_model(ours.run, warn=pytest.fail)[0]), 150)
    with opened(browser, html_of(ours)) as page:
        assert written(page, PROMPT, temperature="0", length="150") == expected
        assert "tokens, " in page.inner_text("#status")


@torch.inference_mode()
def test_rounding_to_8_bits_costs_little(trained: Trained) -> None:
    ours = trained("qwen3-bpe")
    ids = torch.tensor([ours.prompt() * 4])
    loss = ours.model(ids[:, :-1], ids[:, 1:]).item()
    rounded = as_stored(load_model(ours.run, warn=pytest.fail)[0])
    assert rounded(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(loss, abs=0.01)


def html_of(ours: SmallTrained) -> Path:
    """The page, under a name that browsers take for one."""
    page = ours.exported("page").with_suffix(".html")
    if not page.exists():
        shutil.copy(ours.exported("page"), page)
    return page


@pytest.mark.parametrize("name", ["qwen3-bpe", "qwen3-byte", "qwen3-char", "qwen3-word"])
def test_its_tokenizer_agrees(name: str, trained: Trained, browser: Browser) -> None:
    ours = trained(name)
    known = ours.tokenizer.parts["model"]["vocab"].keys()
    samples = texts(1000)
    if name == "qwen3-char":
        samples = ["".join(one for one in text if one in known) for text in samples]
    if name == "qwen3-word":
        samples = [" \n".join(word for word in text.split() if word in known) for text in samples]
    with opened(browser, html_of(ours), asked=True) as page:
        page.add_script_tag(content=(FILES / "tokenizer.js").read_text(encoding="utf-8"))
        answers: list[Any] = page.evaluate(
            """(texts) => {
                const model = JSON.parse(document.getElementById("model").textContent);
                const codec = new TextCodec(model.vocabulary);
                return texts.map((text) => {
                    const [ids, decode] = [codec.encode(text), codec.decoder()];
                    return [ids, [...ids, undefined].map((id) => decode(id)).join("")];
                });
            }""",
            samples,
        )
    for text, (ids, back) in zip(samples, answers, strict=True):
        assert ids == ours.tokenizer.encode(text), repr(text)
        assert back == ours.tokenizer.decode(ids), repr(text)


def test_sampling(trained: Trained, browser: Browser) -> None:
    with opened(browser, html_of(trained("qwen3-byte")), asked=True) as page:
        page.add_script_tag(content=(FILES / "engine.js").read_text(encoding="utf-8"))
        draw = """([temperature, topK, logits]) => {
            const counts = logits.map(() => 0);
            for (let i = 0; i < 1000; i++) {
                counts[sampler(temperature, topK, () => (i + 0.5) / 1000)(Float32Array.from(logits))]++;
            }
            return counts;
        }"""
        logits = [1.0, 3.0, 2.0, -50.0]
        for temperature, top_k in ((0.0, 0), (1.0, 0), (0.5, 0), (1.0, 2), (2.0, 1), (1.0, 9)):
            expected = np.array(logits) / (temperature or 1e-3)
            if top_k:
                expected[np.array(logits) < sorted(logits, reverse=True)[:top_k][-1]] = -np.inf
            chances = np.exp(expected - expected.max())
            counts = page.evaluate(draw, [temperature, top_k, logits])
            np.testing.assert_allclose(counts, 1000 * chances / chances.sum(), atol=1.01)


def test_a_text_can_be_stopped_and_mistakes_are_said(trained: Trained, browser: Browser) -> None:
    with opened(browser, html_of(trained("qwen3-char"))) as page:
        page.fill("#prompt", "")
        page.fill("#length", "1000000")
        page.click("#write")
        page.wait_for_selector("#text:not(:empty)")
        assert not page.is_visible("#write")
        page.click("#stop")
        page.wait_for_selector("#write")
        assert written(page, "\u4e00", length="5") == ""
        assert page.inner_text("#status.error") == 'The model does not know "\u4e00".'
        written(page, "def", temperature="-1")
        assert page.inner_text("#status.error").startswith("Temperature: ")


@pytest.mark.parametrize("width", [1200, 390])
def test_it_fits_a_phone_and_says_what_it_is(width: int, trained: Trained, browser: Browser) -> None:
    colors = set()
    for scheme in ("light", "dark"):
        with opened(browser, html_of(trained("qwen3-bpe")), width, scheme, asked=True) as page:
            page.click("summary")
            written(page, "x" * 300, length="5", temperature="1")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert "15.4 K tokens in 30 steps" in page.inner_text("#facts")
            colors.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2


def test_every_block_can_be_a_page_and_no_name_ends_its_data(tmp_path: Path, browser: Browser) -> None:
    model = a_model(257, mlp="relu2", position="none", n_embd=20, bias=True)
    run = tmp_path / "<b>{{model}}<!--"
    run.mkdir()
    data = {"source": ["</script><b id=evil>.txt"]}
    settings = Settings.model_validate({"model": model.settings.model_dump(), "data": data})
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tokenizer = byte_tokenizer()
    checkpoints.save(Checkpoint(settings, tokenizer.to_json(), 257, True, weights), run / "best.pt")
    ours = SmallTrained(run, tokenizer)
    done = cpulm(tmp_path, "export", str(run), "--to", "page", "--out", "model.html", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "model.html"
    with opened(browser, tmp_path / "model.html") as page:
        assert page.inner_text("h1") == run.name
        assert page.locator("#evil").count() == 0
        assert written(page, PROMPT, temperature="0", length="40") == greedy(ours, as_stored(model), 40)
