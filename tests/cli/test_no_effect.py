"""What was typed and has no effect in a run is said, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import cpulm

from cpulm.cli.no_effect import ignored_by_resume, without_effect
from cpulm.run_dir import RunDir
from cpulm.settings import settings_yaml
from cpulm.settings.resolve_settings import resolve


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["data.val_source=v.txt", "data.val_fraction=0.1"], ["data.val_fraction"]),
        (["data.tokenizer=char", "data.vocab_size=300"], ["data.vocab_size"]),
        (["data.tokenizer=bpe", "data.vocab_size=300"], []),
        (["data.tokenizer=byte", "data.vocab_size=null"], []),
        (["model.position=learned", "model.rope_theta=10"], ["model.rope_theta"]),
        (["train.optimizer=adamw", "train.momentum=0.9"], ["train.momentum"]),
        (["train.schedule=cosine", "train.decay_fraction=0.1"], ["train.decay_fraction"]),
        (["train.schedule=constant", "train.min_lr_ratio=0.1"], ["train.min_lr_ratio"]),
        (["train.teacher_weight=0.1"], ["train.teacher_weight"]),
        (["distributed.share=speed"], ["distributed.share"]),
        (["train.outer_momentum=0.9"], ["train.outer_momentum"]),
        (["lora.alpha=8"], ["lora.alpha"]),
        (["train.init_from=model", "lora.rank=4", "lora.projections=q"], []),
        (["train.outer_steps=30", "train.outer_lr=0.9"], []),
        (["sample.max_new_tokens=0", "sample.prompt=x"], ["sample.prompt"]),
        (["sample.temperature=0", "sample.top_k=3"], ["sample.top_k"]),
        (["train.lr=0.1"], []),
    ],
)
def test_a_setting_without_effect_is_said(assignments: list[str], said: list[str]) -> None:
    warnings = without_effect(resolve(assignments=assignments), assignments, {})
    assert [warning.partition(" has no effect: ")[0] for warning in warnings] == said


@pytest.fixture
def run(in_empty_folder: Path) -> RunDir:
    run = RunDir(in_empty_folder / "run")
    run.path.mkdir()
    source = f"data.source={in_empty_folder / 't.txt'}"
    run.settings.write_text(settings_yaml(resolve("tiny", assignments=[source, "train.lr=0.5"])))
    return run


def ignored(
    run: RunDir, *assignments: str, preset: str | None = None, flags: dict[str, Any] | None = None
) -> list[str]:
    given: dict[str, Any] = {"environ": {}, "assignments": assignments, "flags": flags or {}}
    found = ignored_by_resume(run.path, ["runtime.nice"], preset, None, **given)
    return [warning.partition("no effect of ")[2] for warning in found]


def test_what_a_resumed_run_does_not_take_is_said(run: RunDir) -> None:
    assert ignored(run, "train.lr=0.1", "train.steps=9") == ["train.lr = 0.1 (it has 0.5)"]
    assert ignored(run, "train.lr=0.5", preset="tiny") == []
    assert ignored(run, preset="small") == ["the preset small"]
    assert ignored(run, flags={"data.source": ["t.txt"], "runtime.nice": True}) == []
    assert ignored(run, flags={"data.source": ["other.txt"]}) != []


def test_options_that_train_nothing_are_refused_together_with_others(in_empty_folder: Path) -> None:
    for line in (
        "tokenize t.txt --list-cache",
        "tokenize --prune-cache 9d --out x",
        "benchmark --all --quick",
    ):
        done = cpulm(in_empty_folder, *line.split())
        assert done.returncode == 2, line
        assert "hint: leave" in done.stderr
