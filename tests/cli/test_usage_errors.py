"""Usage errors: one message, one hint, exit code 2, in one style; and tab completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpulm.cli import completion
from cpulm.cli.main import main

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def typed(patch: pytest.MonkeyPatch, line: str) -> object:
    """The exit code of ``cpulm LINE`` in this process."""
    with patch.context() as inner:
        inner.setattr(sys, "argv", ["cpulm", *line.split()])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


WRONG = [
    ("train --batch_size=12", "cpulm train has no option --batch_size", "write --batch-size"),
    ("train --learning_rate 1e-3", "no option --learning_rate", "cpulm calls it --lr"),
    ("train --learning-rate 1e-3", "no option --learning-rate", "cpulm calls it --lr"),
    ("train --max_iters=5000", "no option --max_iters", "cpulm calls it --steps"),
    ("train --max-steps 5", "no option --max-steps", "cpulm calls it --steps"),
    ("train --depth=4", "no option --depth", "cpulm calls it --n-layer"),
    ("train --gradient_accumulation_steps=8", "accumulation_steps", "cpulm calls it --grad-accum"),
    ("train --wandb", "no option --wandb", "cpulm calls it --tensorboard"),
    ("train --weight-decay 0.1", "no option --weight-decay", "--set train.weight_decay=VALUE"),
    ("train --warmup_iters=10", "no option --warmup_iters", "--set train.warmup_steps=VALUE"),
    ("train --init_from=resume", "no option --init_from", "write --init-from"),
    ("generate RUN --start x", "no option --start", "cpulm calls it --prompt"),
    ("generate RUN -p x", "no option -p", "cpulm calls it --prompt"),
    ("generate -m RUN", "no option -m", "give it as the argument RUN"),
    ("chat RUN -z", "no option -z", "see `cpulm chat --help`"),
    ("generate RUN Once", "Once: too many arguments", "--prompt Once"),
    ("train --num_train_epochs=3", "no option --num_train_epochs", "cpulm calls it --epochs"),
    ("train --dataset=x", "no option --dataset", "cpulm calls it --data"),
    ("train --model_name_or_path=gpt2", "no option --model_name_or_path", "cpulm calls it --init-from"),
    (
        "train --checkpoint=x.pt",
        "no option --checkpoint",
        "--init-from RUN; a run to continue: `cpulm resume",
    ),
    ("train --train.max_steps=3", "no option --train.max_steps", "cpulm calls it --steps"),
    ("train --train.min_lr=3", "no option --train.min_lr", "--set train.min_lr_ratio=VALUE"),
    ("train --eval.max_iters=3", "no option --eval.max_iters", "--set eval.batches=VALUE"),
    ("train --optimizer.weight_decay=1", "optimizer.weight_decay", "--set train.weight_decay=VALUE"),
    ("train --data.vocab_size=1", "no option --data.vocab_size", "cpulm calls it --vocab-size"),
    ("train --workers=2", "no option --workers", "see `cpulm train --help`"),
    ("train --hours 2", "no option --hours", "cpulm calls it --max-time"),
    ("sweep --n_trials=8", "no option --n_trials", "cpulm calls it --random"),
    ("train --stepps 5", "no option --stepps", "did you mean --steps?"),
    ("train --steps", "--steps needs a value", "--steps N: Optimizer updates"),
    ("train --compile=False", "--compile takes no value", "write --compile or --no-compile alone"),
    ("train --json=1", "--json takes no value", "write --json alone"),
    ("train --steps x", "--steps x: must be a whole number", "train.steps: "),
    ("train --lr -1", "--lr -1: must be greater than 0", "train.lr: "),
    ("train --lora-rank 8", "--lora-rank 8 needs a model to begin with", "--print-config"),
    ("train --chat --set train.records=false", "--chat makes records of", "leave train.records=false out"),
    ("train --chat --loss-after a", "--chat and --loss-after both say", "leave one out"),
    ("train --set lora.projections=[z]", "lora.projections = 'z': must be one of q, k", "known: q, k, v"),
    ("train --device gpu", "--device gpu: must be one of auto, cpu, cuda, mps", "did you mean"),
    ("train small", "small is a preset", "write --preset small"),
    ("benchmark tiny", "tiny is a preset", "write --preset tiny"),
    ("train --muon-lr 1 --set train.optimizer=adamw", "no effect", "--set train.optimizer=muon"),
    ("generate", "RUN is missing", "such as `cpulm generate runs/tiny-1`"),
    ("generate RUN --model other", "no option --model", "give it as the argument RUN"),
    ("generate RUN --max-new-tokens many", "--max-new-tokens many: this is not a whole number", "N: Max"),
    ("generate RUN --num-samples 0", "--num-samples 0: this must be at least 1", "--num-samples N: "),
    ("watch RUN --port 70000", "--port 70000: this must be at most 65535", "--port N: "),
    ("resume", "RUN is missing", "such as `cpulm resume runs/tiny-1`"),
    ("resume runs/x --nproc abc", "--nproc abc: must be a whole number", "distributed.processes: "),
    ("resume a b", "b: too many arguments", "cpulm resume RUN [OPTIONS]"),
    ("resume RUN --patience 3", "no option --patience", "it is an option of `cpulm train`"),
    ("evaluate RUN --set data.errors=replace", "no option --set", "it is an option of `cpulm train`"),
    ("train --quantize q8_0", "no option --quantize", "it is an option of `cpulm export`"),
    ("evaluate", "RUN is missing", "such as `cpulm evaluate runs/tiny-1`"),
    ("evaluate notes.txt", "notes.txt is neither a run nor a checkpoint", "--data notes.txt"),
    ("sweep --seed 3", "--seed is the seed of --random", "--set train.seed=N"),
    (
        "analyze nowhere --card card.gif",
        "--card card.gif: a card is a PNG picture",
        "such as --card card.png",
    ),
    ("trian", "there is no command trian", "did you mean `cpulm train`?"),
    ("zzz", "there is no command zzz", "the commands are train,"),
    ("--zzz", "there is no option --zzz", "see `cpulm --help`"),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, _, _ in WRONG])
def test_one_message_one_hint_and_two(
    line: str,
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    assert typed(monkeypatch, line) == 2
    output = capsys.readouterr()
    first, second = output.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith(" hint: ")
    assert hint in second
    assert output.out == ""


def printed(line: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The settings that ``cpulm train LINE`` resolves."""
    assert typed(patch, f"train {line} --print-config") == 0
    settings: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return settings


def test_the_options_that_people_of_other_tools_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "notes.txt --data more.txt --batch-size 3 --grad-accum 2 --seq-len 64 --n-layer 2 --n-head 4 "
        "--n-embd 32 "
        "--vocab-size 300 --dropout 0.1 --eval-every 7 --tokenizer word --muon-lr 0.01 --lr 1e-3 --field body"
    )
    found = printed(line, monkeypatch, capsys)
    model, train, data = found["model"], found["train"], found["data"]
    assert (model["n_layer"], model["n_head"], model["n_embd"], model["block_size"]) == (2, 4, 32, 64)
    assert (model["dropout"], found["eval"]["every"]) == (0.1, 7)
    assert (train["micro_batch_size"], train["grad_accum_steps"]) == (3, 2)
    assert (train["lr"], train["muon_lr"]) == (1e-3, 0.01)
    assert (data["tokenizer"], data["vocab_size"], data["field"]) == ("word", 300, "body")
    assert data["source"] == ["notes.txt", "more.txt"]


def test_an_option_overrides_an_assignment_which_overrides_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CPULM_TRAIN__MICRO_BATCH_SIZE", "5")
    monkeypatch.setenv("CPULM_MODEL__N_LAYER", "5")
    assignments = "--set train.micro_batch_size=6 --set model.n_layer=6"
    found = printed(f"{assignments} --batch-size 7", monkeypatch, capsys)
    assert (found["train"]["micro_batch_size"], found["model"]["n_layer"]) == (7, 6)


def test_old_spellings_still_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.yaml").write_text("train: {steps: 7}")
    assert printed("--plan plan.yaml", monkeypatch, capsys)["train"]["steps"] == 7
    for line, refused in (
        ("sweep --random-seed 3", "--seed is the seed of --random"),
        ("benchmark --time soon", "--max-time: 'soon' is not a duration"),
        ("evaluate --checkpoint nowhere --samples 0", "--samples 0"),
        ("analyze nowhere --text a.txt", "--data has no effect without --model"),
    ):
        assert typed(monkeypatch, line) == 2
        assert refused in capsys.readouterr().err


def test_a_word_that_begins_like_a_value_is_completed() -> None:
    assert completion.preset("nanog") == ["nanogpt-char"]
    assert "train.muon_lr=" in completion.assignment("train.mu")
    assert completion.assignment("runtime.compile=o") == ["runtime.compile=on", "runtime.compile=off"]
    assert completion.assignment("model.bias=") == ["model.bias=true", "model.bias=false"]
    assert completion.choices("runtime.device")("c") == ["cpu", "cuda"]
    assert completion.choices("runtime.precision")("") == ["auto", "fp32", "bf16", "int8"]
    assert completion.axis("t") == ["tokens", "time"]
    assert completion.tokenizer("b") == ["bpe", "byte"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CPULM_CAHCE", "CPULM_CAHCE has no effect; did you mean CPULM_CACHE?"),
        ("CPULM_LR", "did you mean CPULM_TRAIN__LR?"),
        ("CPULM_TRAIN_LRR", "did you mean CPULM_TRAIN__LR?"),
        ("CPULM_NOSUCH", "CPULM_NOSUCH has no effect; cpulm knows CPULM_CACHE"),
        ("CPULM_CACHE", ""),
        ("CPULM_DEBUG", ""),
        ("CPULM_OUT", ""),
    ],
)
def test_an_environment_variable_that_nothing_reads_is_named(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    assert typed(monkeypatch, "--version") == 0
    assert capfd.readouterr().err == ""
    assert typed(monkeypatch, "runs") == 0
    err = capfd.readouterr().err
    assert (said in err) if said else ("variable" not in err)


def test_the_processes_of_a_distributed_run_do_not_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CPULM_NOSUCH", "1")
    monkeypatch.setenv("RANK", "1")
    typed(monkeypatch, "runs")
    assert "variable" not in capfd.readouterr().err
