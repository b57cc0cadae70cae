"""The scores of a model on a text, against its logits one token at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch

from cpulm.data.reading import Reading
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, train_word
from cpulm.errors import DataError
from cpulm.evaluation.text_score import TextScore, difference, score_text
from cpulm.evaluation.text_tokens import open_text
from cpulm.evaluation.text_windows import Protocol
from cpulm.events import Event, Listener, Progress, Validated
from cpulm.execution.runtime import Runtime
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

RUNTIME = Runtime(torch.device("cpu"), "here", 1, "fp32")
BLOCK = 16


def a_model(vocab_size: int, seed: int = 0) -> Transformer:
    model = Transformer(ModelSettings(n_layer=2, n_head=2, n_embd=16, block_size=BLOCK), vocab_size)
    model.init_weights(seed)
    with torch.no_grad():  # fresh weights hardly prefer any token: these have opinions
        model.wte.weight.mul_(20)
    return model.eval().requires_grad_(False)


def figures(
    model: Transformer,
    tokenizer: Tokenizer,
    source: Path,
    protocol: Protocol,
    most: int | None = None,
    emit: Listener = lambda _: None,
) -> TextScore:
    text = open_text([str(source)], tokenizer, Reading(), emit=lambda _: None)
    return score_text(
        model,
        tokenizer,
        text,
        protocol,
        RUNTIME,
        name="model",
        max_tokens=most,
        emit=emit,
        should_stop=lambda: False,
    )


def one_by_one(model: Transformer, ids: list[int], begins: list[int]) -> tuple[list[float], list[bool]]:
    """Loss and hit of each token but the first, with the context from ``begins[k]`` on."""
    losses, hits = [], []
    for k in range(1, len(ids)):
        logits = model(torch.tensor([ids[begins[k] : k]]))[0, -1].double()
        losses.append(-float(logits.log_softmax(-1)[ids[k]]))
        hits.append(int(logits.argmax()) == ids[k])
    return losses, hits


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("It was a dark and stormy night; the rain fell in torrents, äußerst heftig. " * 2)
    return path


@pytest.mark.parametrize("stride", [16, 5, 1])
def test_the_figures_are_those_of_the_logits(story: Path, stride: int) -> None:
    tokenizer = byte_tokenizer()
    model = a_model(tokenizer.vocab_size)
    found = figures(model, tokenizer, story, Protocol(BLOCK, stride))
    ids = [*tokenizer.encode(story.read_text()), tokenizer.eot_id]
    # The window that scores target k is the first one, at a multiple of the stride, that reaches it.
    begins = [max(0, math.ceil((k - BLOCK) / stride)) * stride for k in range(len(ids))]
    losses, hits = one_by_one(model, ids, begins)
    assert found.scored == len(losses) == found.tokens - 1
    assert found.loss.value == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.accuracy.value == np.mean(hits)
    size = len(story.read_bytes())
    assert found.text_bytes == size
    assert found.bits_per_byte.value == pytest.approx(
        np.mean(losses) / math.log(2) * len(ids) / size, rel=1e-5
    )


def test_few_documents_are_judged_by_blocks_and_many_by_themselves(story: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = a_model(tokenizer.vocab_size)
    by_blocks = figures(model, tokenizer, story, Protocol(BLOCK, BLOCK))
    assert (by_blocks.unit, by_blocks.block_tokens, by_blocks.documents) == ("blocks", BLOCK, 1)
    assert by_blocks.units == math.ceil(by_blocks.scored / BLOCK)

    texts = [f"Document {number} says {'more ' * (number % 7)}and ends." for number in range(40)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    eot = tokenizer.eot_id
    found = figures(model, tokenizer, tmp_path / "many.jsonl", Protocol(BLOCK, BLOCK, True, eot))
    assert (found.unit, found.units, found.documents) == ("documents", 40, 40)
    sums, counts = [], []
    for text in texts:
        ids = [eot, *tokenizer.encode(text), eot]
        begins = [(k - 1) // BLOCK * BLOCK for k in range(len(ids))]
        losses, _ = one_by_one(model, ids, begins)
        sums.append(sum(losses))
        counts.append(len(losses))
    mean = sum(sums) / sum(counts)
    residuals = np.array(sums) - mean * np.array(counts)
    assert found.loss.value == pytest.approx(mean, rel=1e-5)
    assert found.loss.standard_error == pytest.approx(
        math.sqrt(40 / 39 * float((residuals**2).sum())) / sum(counts), rel=1e-3
    )


def test_the_difference_of_two_models_has_a_smaller_error_than_either(story: Path) -> None:
    """Both find the same places hard: what their figures have in common falls out of the difference."""
    tokenizer = byte_tokenizer()
    model, other = a_model(tokenizer.vocab_size), a_model(tokenizer.vocab_size)
    other.wte.weight.mul_(1.01)
    protocol = Protocol(BLOCK, BLOCK)
    one, two = (figures(each, tokenizer, story, protocol) for each in (model, other))
    found = difference(one, two)
    assert found is not None
    assert found.value == pytest.approx(one.bits_per_byte.value - two.bits_per_byte.value)
    assert found.standard_error is not None
    assert one.bits_per_byte.standard_error is not None
    assert found.standard_error < one.bits_per_byte.standard_error / 5
    assert difference(one, figures(other, tokenizer, story, protocol, most=60)) is None


def test_a_run_and_its_evaluation_say_the_same(tmp_path: Path) -> None:
    from cpulm.evaluation.evaluate import EvaluationRequest, evaluate_checkpoints
    from cpulm.settings import RuntimeSettings

    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(300)))
    events, outcome = small_runs.train(small_runs.settings_for(tmp_path / "text.txt"), tmp_path / "run")
    said = [event for event in small_runs.of(Validated, events) if event.best][-1]
    assert said.whole
    found = evaluate_checkpoints(
        [outcome.run.path], EvaluationRequest(), RuntimeSettings(threads=1), show=lambda _: None
    )
    score = found.scores[0].text
    assert score is not None
    assert score.loss.value == pytest.approx(said.loss, rel=1e-5)
    assert score.perplexity.value == pytest.approx(said.perplexity, rel=1e-4)
    assert score.bits_per_byte.value == pytest.approx(said.bits_per_byte, rel=1e-5)
    assert score.scored == said.tokens


def test_no_more_than_the_first_tokens_are_read(story: Path) -> None:
    tokenizer = byte_tokenizer()
    found = figures(a_model(tokenizer.vocab_size), tokenizer, story, Protocol(BLOCK, BLOCK), most=50)
    assert (found.tokens, found.scored, found.text_bytes) == (50, 49, 50)


@pytest.mark.parametrize(("most", "total"), [(None, 60_000), (20_000, 20_000)])
def test_progress_is_reported_between_the_batches_of_one_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None, total: int
) -> None:
    monkeypatch.setattr("cpulm.progress._CHECK_SECONDS", 0.0)
    monkeypatch.setattr("cpulm.progress._REPORT_SECONDS", 0.0)
    (tmp_path / "long.txt").write_text("six by " * 8571 + "six")
    tokenizer = byte_tokenizer()
    events: list[Event] = []
    figures(
        a_model(tokenizer.vocab_size),
        tokenizer,
        tmp_path / "long.txt",
        Protocol(BLOCK, BLOCK),
        most,
        events.append,
    )
    told = [event for event in events if isinstance(event, Progress)]
    done = [event.done for event in told]
    assert {event.total for event in told} == {total}
    assert done == sorted(done)
    assert len(set(done)) > 4
    assert done[-1] == pytest.approx(total, abs=2)


def test_a_model_whose_outputs_are_not_finite_is_refused(story: Path) -> None:
    tokenizer = byte_tokenizer()
    model = a_model(tokenizer.vocab_size)
    model.wte.weight[tokenizer.eot_id] = math.nan
    with pytest.raises(DataError, match="model computes values that are not finite"):
        figures(model, tokenizer, story, Protocol(BLOCK, BLOCK))


def test_words_that_the_vocabulary_lacks_are_reported(tmp_path: Path) -> None:
    tokenizer = train_word(["a cat and a dog"], None)
    (tmp_path / "text.txt").write_text("a cat and a cow")
    found = figures(a_model(tokenizer.vocab_size), tokenizer, tmp_path / "text.txt", Protocol(BLOCK, BLOCK))
    assert found.unknown == pytest.approx(1 / 6)


@pytest.mark.parametrize("content", ["", "\n"])
def test_a_text_without_a_token_to_predict_is_refused(tmp_path: Path, content: str) -> None:
    tokenizer = train_word(["a cat and a dog"], None)
    (tmp_path / "text.txt").write_text(content)
    with pytest.raises(DataError, match=r"text.txt has (no token|1 token) of text"):
        figures(a_model(tokenizer.vocab_size), tokenizer, tmp_path / "text.txt", Protocol(BLOCK, BLOCK))


def test_a_document_of_any_length_is_read_in_pieces(tmp_path: Path) -> None:
    """The longest document there is passes through without ever being whole in memory."""
    tokenizer = byte_tokenizer()
    with (tmp_path / "long.txt").open("w") as file:
        for number in range(90_000):
            file.write(f"line {number}\n")
    text = open_text([str(tmp_path / "long.txt")], tokenizer, Reading(), emit=lambda _: None)
    sizes = [len(chunk.ids) for chunk in text.chunks()]
    assert sum(sizes) == (tmp_path / "long.txt").stat().st_size + 1
    assert max(sizes) < 400_000 < sum(sizes)
