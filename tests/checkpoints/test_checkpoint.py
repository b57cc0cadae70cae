"""Checkpoints are written atomically, loaded without executing code, and refused if damaged."""

from __future__ import annotations

import os
import pickle
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.seal import seal
from cpulm.checkpoints.train_state import LossTracker, TrainState
from cpulm.errors import DataError, ResourceError
from cpulm.settings import ModelSettings, Settings


def a_checkpoint(step: int = 7) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        settings=Settings(model=ModelSettings(n_layer=1, n_embd=8, n_head=2, block_size=8)),
        tokenizer_json='{"a": "ä"}',
        vocab_size=3,
        starts_documents=True,
        model_state={"w": torch.randn(16, 16, generator=generator)},
        optimizer_states=[{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
        state=TrainState(step=step, tokens=70, elapsed_seconds=1.5, best_loss=2.25, best_step=5),
        random_state={"cpu": torch.get_rng_state()},
        runtime={"device": "cpu", "threads": 2, "precision": "fp32", "compiled": False},
        data={"path": "tokens", "digest": "d"},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    size = checkpoints.save(a_checkpoint(), path)
    loaded = checkpoints.load(path)
    assert size == path.stat().st_size
    assert torch.equal(loaded.model_state["w"], a_checkpoint().model_state["w"])
    assert loaded.state == a_checkpoint().state
    assert loaded.settings == a_checkpoint().settings
    assert loaded.optimizer_states == a_checkpoint().optimizer_states
    assert (loaded.tokenizer_json, loaded.vocab_size, loaded.starts_documents) == ('{"a": "ä"}', 3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def test_files_of_earlier_versions_name_the_state_as_this_one_does(tmp_path: Path) -> None:
    """What the code calls ``state`` and ``losses`` is "position" and "course" in format 1."""
    path = tmp_path / "latest.pt"
    checkpoint = a_checkpoint()
    checkpoint.state.losses = LossTracker(mean_loss=2.5, high_updates=1)
    checkpoints.save(checkpoint, path)
    stored = torch.load(path, weights_only=True)["position"]
    assert stored["course"] == {"mean_loss": 2.5, "high_updates": 1}
    assert stored["step"] == 7
    assert checkpoints.load(path).state.losses == LossTracker(2.5, 1)


def test_other_tools_can_open_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoints.save(a_checkpoint(), path)
    assert zipfile.ZipFile(path).testzip() is None
    assert torch.load(path, weights_only=True)["format"] == checkpoints.FORMAT


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoints.save(a_checkpoint(), path)
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"latest\.pt"):
            checkpoints.load(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "latest.pt"
    checkpoints.save(a_checkpoint(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError):
        checkpoints.load(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    with path.open("w+b") as file:
        torch.save({"format": checkpoints.FORMAT, "x": Malicious()}, file)
        seal(file)
    with pytest.raises(DataError, match="is not a cpulm checkpoint"):
        checkpoints.load(path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()) + b" " * 500)
    with pytest.raises(DataError):
        checkpoints.load(tmp_path / "plain.pt")
    assert not (tmp_path / "pwned").exists()


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with path.open("r+b") as file:
        seal(file)
    with pytest.raises(DataError, match="compressed"):
        checkpoints.load(path)


def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("hello " * 100)
    with pytest.raises(DataError, match=r"a\.pt is not a cpulm checkpoint"):
        checkpoints.load(tmp_path / "a.pt")
    with pytest.raises(DataError, match="does not exist"):
        checkpoints.load(tmp_path / "absent.pt")


def test_the_first_whole_checkpoint_is_used_and_the_damaged_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(a_checkpoint(step), tmp_path / f"{step}.pt")
    (tmp_path / "3.pt").write_bytes((tmp_path / "3.pt").read_bytes()[:-1])
    paths = [tmp_path / f"{step}.pt" for step in (3, 2, 1)]
    loaded, path, damaged = checkpoints.load_newest(paths)
    assert (loaded.step, path.name) == (2, "2.pt")
    assert len(damaged) == 1
    assert "3.pt" in damaged[0]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.pt"):
        checkpoints.load_newest(paths)


def test_a_duplicate_lies_on_blocks_of_its_own(tmp_path: Path) -> None:
    """A hard link would be the same file: one bad byte on the disk, and both are damaged."""
    one, other = tmp_path / "best.pt", tmp_path / "latest.pt"
    checkpoints.save(a_checkpoint(1), one)
    checkpoints.duplicate(one, other)
    with other.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    assert checkpoints.load(one).step == 1
    with pytest.raises(DataError):
        checkpoints.load(other)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to refuse a write")
@pytest.mark.parametrize("room", [100, 9_000, 300_000, 1_000_900])
def test_a_disk_that_fills_in_the_middle_is_named(tmp_path: Path, room: int) -> None:
    import resource

    checkpoint = a_checkpoint()
    checkpoint.model_state = {str(number): torch.zeros(250_000) for number in range(4)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"no space to write .*latest\.pt: File too large"):
            checkpoints.save(checkpoint, tmp_path / "latest.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_duplicate_outlives_its_original(tmp_path: Path) -> None:
    checkpoints.save(a_checkpoint(1), tmp_path / "latest.pt")
    checkpoints.duplicate(tmp_path / "latest.pt", tmp_path / "step-00000001.pt")
    checkpoints.save(a_checkpoint(2), tmp_path / "latest.pt")
    assert checkpoints.load(tmp_path / "step-00000001.pt").step == 1
    assert checkpoints.load(tmp_path / "latest.pt").step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "step-00000001.pt"]


def test_the_only_checkpoint_keeps_the_hint_of_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        checkpoints.load_newest([tmp_path / "absent.pt"])
    assert error.value.hint == "give a checkpoint such as runs/tiny-1/best.pt"
