"""``import cpulm``: what it loads, and that it does what the commands of the same names do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_models import answering_checkpoint
from command_line import cpulm as command
from small_exports import SmallTrained
from small_exports import trained as trained
from small_runs import SMALL

import cpulm
from cpulm.errors import DataError, SettingsError
from cpulm.evaluation.evaluate import EvaluationRequest, evaluate_checkpoints
from cpulm.settings import RuntimeSettings
from cpulm.settings.resolve_settings import resolve

TEXT = "def load(path: Path) -> Checkpoint:\n    return read(path)\n" * 4


def test_it_loads_torch_only_once_a_model_is_loaded() -> None:
    program = "import sys, cpulm; print(cpulm.__version__, 'torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cpulm.__version__, "False", "False"]
    with pytest.raises(AttributeError, match="lod"):
        _ = cpulm.lod  # type: ignore[attr-defined]


def test_a_model_writes_what_the_command_writes(trained: Callable[[str], SmallTrained]) -> None:
    run = trained("qwen3-bpe").run
    model = cpulm.load(run)
    written = model.generate("def ", max_new_tokens=12, seed=3)
    options = ("--prompt", "def ", "--max-new-tokens", "12", "--seed", "3")
    assert command(run, "generate", str(run), *options).stdout == f"def {written}\n"
    assert "".join(model.stream("def ", max_new_tokens=12, seed=3)) == written
    assert model.generate("def ", max_new_tokens=12, seed=3, stop=written[2:4]) == written[:2]
    assert model.generate("def ", max_new_tokens=12, temperature=0) != written
    with pytest.raises(SettingsError, match="temperature"):
        model.stream("def ", temperature=-1)


@pytest.mark.parametrize("kind", ["qwen3-bpe", "gpt2-char"])
def test_its_loss_is_that_of_evaluate(
    kind: str, trained: Callable[[str], SmallTrained], tmp_path: Path
) -> None:
    run, file = trained(kind).run, tmp_path / "text.txt"
    file.write_text(TEXT)
    request, settings = EvaluationRequest((str(file),)), RuntimeSettings(precision="fp32")
    judged = evaluate_checkpoints([run], request, settings, show=lambda _: None).scores[0].text
    assert judged is not None
    model = cpulm.load(run)
    found = model.loss(TEXT)
    figures = (judged.loss.value, judged.bits_per_byte.value, judged.scored)
    assert (found.loss, found.bits_per_byte, found.scored) == pytest.approx(figures, rel=1e-6)
    with pytest.raises(DataError, match="the text"):
        model.loss("")


def test_a_run_is_trained_by_a_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(TEXT * 9)
    small = resolve(assignments=SMALL).model_dump()
    config = {**small, "data.source": Path("notes.txt"), "train.steps": 3, "eval": {"every": 1}}
    trained = cpulm.train(config, tmp_path / "run")
    assert (trained.path, trained.step) == (tmp_path / "run", 3)
    assert trained.load().settings.train.steps == 3
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    names = {file.name for file in trained.path.iterdir()}
    assert {"best.pt", "metrics.jsonl", "report.html", "settings.yaml"} <= names
    again = cpulm.train(trained.path / "settings.yaml")
    assert again.path == Path("runs") / "run-1"
    assert again.best_loss == trained.best_loss


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"train": {"stps": 3}}, "stps"),
        ({"train.steps": -1}, "train.steps"),
        ({"train": 3}, "section"),
        ({"preset": "tiny", "distributed.processes": 2}, "distributed.processes"),
        ("missing.yaml", "missing.yaml"),
    ],
)
def test_a_wrong_config_is_a_settings_error(config: dict[str, object] | str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        cpulm.train(config)


def test_a_model_answers_what_the_command_answers(
    trained: Callable[[str], SmallTrained], tmp_path: Path
) -> None:
    path = answering_checkpoint(tmp_path / "talk" / "best.pt")
    model = cpulm.load(path)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert model.chat(talk, temperature=0) == "abcde"
    assert (
        model.chat(talk, temperature=0, max_new_tokens=2) == model.chat(talk, temperature=0, stop="c") == "ab"
    )
    with pytest.raises(DataError, match=r"messages: message 1 has the role 'tool'"):
        model.chat([{"role": "tool", "content": "hi"}])
    with pytest.raises(DataError, match="the conversation has 95 tokens; the model sees 64"):
        model.chat([talk[0], {"role": "user", "content": "x" * 80}])
    with pytest.raises(SettingsError, match="was not trained on conversations"):
        cpulm.load(trained("qwen3-bpe").run).chat(talk)
