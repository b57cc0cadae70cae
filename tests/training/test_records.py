"""``train.records`` in complete runs: exact resumption, validation, the mask of the loss, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import of, resume, same, settings_for, train

from cpulm.checkpoints.load_model import load_model
from cpulm.data.batches import ValidationBatches
from cpulm.data.loader import IGNORED
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.evaluation.evaluate import EvaluationRequest, evaluate_checkpoints
from cpulm.events import Event, Notice, StepDone, Validated
from cpulm.settings import RuntimeSettings

RECORDS = ("train.records=true", "model.block_size=32", "data.template={kind} {name}", "model.dropout=0")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    kinds = ("cat", "rat", "bat")
    path.write_text("kind,name\n" + "".join(f"{kinds[n % 3]},{n} {'x' * (n % 7)}\n" for n in range(400)))
    return path


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in of(StepDone, events)]


@pytest.mark.parametrize(
    "more", [["data.loss_after=kind"], ["runtime.kernels=off", "model.position=learned"]]
)
def test_a_resumed_run_is_bit_identical(rows: Path, tmp_path: Path, more: list[str]) -> None:
    settings = settings_for(rows, *RECORDS, *more)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=5)
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")


@pytest.mark.parametrize("condition", ["", "kind"])
def test_a_run_is_validated_and_evaluated_on_every_record_once(
    rows: Path, tmp_path: Path, condition: str
) -> None:
    settings = settings_for(rows, *RECORDS, f"data.loss_after={condition}", "train.lr=0.05")
    events, _ = train(settings, tmp_path / "run")
    validated = of(Validated, events)[-1]
    _, tokenizer, checkpoint = load_model(tmp_path / "run" / "latest.pt", warn=lambda _: None)
    tokens = TokenFolder.open(Path(checkpoint.data["path"]))
    targets = [y[y != IGNORED].tolist() for _, y in ValidationBatches(settings, tokens)]
    wanted = tokens.meta["val"]["counted_tokens"] if condition else len(tokens.val)
    assert validated.tokens == sum(map(len, targets)) == wanted
    if condition:
        assert not any(kind in tokenizer.decode(part) for part in targets for kind in ("cat", "rat", "bat"))
    for sources in ((), (str(rows),)):
        request = EvaluationRequest(sources=sources)
        path = tmp_path / "run" / "latest.pt"
        in_fp32 = RuntimeSettings(precision="fp32", threads=1, device="cpu")  # as a run validates
        scored = evaluate_checkpoints([path], request, in_fp32, show=lambda _: None).scores[0]
        assert scored.text is not None
        if sources:
            assert (
                scored.text.scored == tokens.meta["train"].get("counted_tokens", len(tokens.train)) + wanted
            )
        else:
            assert scored.text.scored == wanted
            assert scored.text.loss.value == pytest.approx(validated.loss, rel=1e-5)
            assert scored.text.bits_per_byte.value == pytest.approx(validated.bits_per_byte, rel=1e-5)


def test_records_and_conditions_change_what_is_learnt(rows: Path, tmp_path: Path) -> None:
    variants = [("train.records=false",), (), ("data.loss_after=kind",)]
    runs = [
        losses(train(settings_for(rows, *RECORDS, *more), tmp_path / str(number))[0])
        for number, more in enumerate(variants)
    ]
    assert runs[0] != runs[1]
    assert runs[1] != runs[2]


def test_an_epoch_takes_as_many_steps_as_its_windows_need(rows: Path, tmp_path: Path) -> None:
    events, _ = train(settings_for(rows, *RECORDS, "train.steps=null", "train.epochs=1"), tmp_path / "run")
    assert of(StepDone, events)[-2].epoch < 1 <= of(StepDone, events)[-1].epoch + 4 / 100


def test_records_that_are_too_long_are_said(rows: Path, tmp_path: Path) -> None:
    events, _ = train(settings_for(rows, *RECORDS, "model.block_size=10", "train.steps=1"), tmp_path / "run")
    said = [event.message for event in of(Notice, events)]
    assert any("longer than the block size of 10: only their beginnings" in message for message in said)
    assert any("--block-size 15" in message for message in said)


def test_a_block_that_cuts_off_all_answers_is_refused(tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    talk = '{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "so"}}]}}\n'
    chats.write_text("".join(talk.format(f"{number} " * 20) for number in range(40)))
    with pytest.raises(
        SettingsError, match=r"block_size = 16 cuts off all that counts .* training split"
    ) as error:
        train(settings_for(chats, "data.chat=true"), tmp_path / "run")
    assert "--block-size 6" in error.value.hint
    assert not (tmp_path / "run").exists()
    train(settings_for(chats, "data.chat=true", "model.block_size=80", "train.steps=1"), tmp_path / "run")
