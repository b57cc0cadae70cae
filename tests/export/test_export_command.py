"""``cpulm export``: what it writes, says and refuses."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import pytest
from command_line import cpulm
from full_disk import full_disk, has_limits
from small_exports import SmallTrained
from small_models import a_model

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.export.hf import HF_FILES
from cpulm.settings import Settings

Trained = Callable[[str], SmallTrained]


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A folder with a run in it."""
    shutil.copytree(
        trained("gpt2-char").run, tmp_path / "runs" / "plays", ignore=shutil.ignore_patterns("exp*")
    )
    return tmp_path


def names(path: Path) -> set[str]:
    return {one.name for one in path.iterdir()}


def test_it_names_what_it_wrote_and_what_to_type_next(folder: Path) -> None:
    done = cpulm(folder, "export", "runs/plays", "--to", "gguf")
    assert (done.returncode, done.stdout) == (0, "plays-f16.gguf\n")
    assert "warning: llama.cpp computes the tanh form of gelu" in done.stderr
    assert "ollama create plays -f plays-f16.Modelfile" in done.stderr
    assert names(folder) == {"runs", "plays-f16.gguf", "plays-f16.Modelfile"}
    modelfile = (folder / "plays-f16.Modelfile").read_text()
    assert modelfile.startswith(
        'FROM ./plays-f16.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 128\n'
    )


def test_the_next_command_of_bare_weights_is_a_program(folder: Path) -> None:
    done = cpulm(folder, "export", "runs/plays", "--to", "safetensors", "--out", "weights")
    assert (
        """  python -c "from safetensors.numpy import load_file; print(load_file('weights').""" in done.stderr
    )
    (command,) = (line.strip() for line in done.stderr.splitlines() if "python -c" in line)
    assert shlex.split(command)[2].endswith("print(load_file('weights').keys())")
    done = cpulm(folder, "export", "runs/plays", "--to", "safetensors", "--out", "a$b")
    (command,) = (line.strip() for line in done.stderr.splitlines() if "python -c" in line)
    assert "load_file('a$b')" in shlex.split(command)[2]
    assert command.startswith("python -c '")


def test_json_lists_the_files(folder: Path) -> None:
    done = cpulm(folder, "export", "runs/plays/best.pt", "--to", "hf", "--json")
    facts = json.loads(done.stdout)
    assert facts["path"] == "plays-hf"
    assert {Path(file["path"]).name for file in facts["files"]} == names(folder / "plays-hf") == HF_FILES
    assert all(file["bytes"] for file in facts["files"])


@pytest.mark.parametrize("to", ["hf", "gguf", "page", "safetensors"])
def test_what_is_there_is_replaced_only_with_force(to: str, folder: Path) -> None:
    command = ("export", "runs/plays", "--to", to, "--out", "out/model")
    assert cpulm(folder, *command).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    done = cpulm(folder, *command)
    assert done.returncode == 2
    assert "exists\n hint: choose another --out, or replace it with --force" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")} == before
    assert cpulm(folder, *command, "--force").returncode == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in after)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--to", "onnx"), "--to onnx is not a format\n hint: give one of hf, gguf, page, safetensors"),
        (("--to", "hf", "--quantize", "q8_0"), "--quantize has no effect with --to hf"),
        (("--to", "gguf", "--quantize", "q1"), "--quantize q1 is not a type"),
        (("--to", "gguf", "--push", "me/it"), "--push has no effect with --to gguf"),
        (("--to", "hf", "--push", "a b"), "--push a b is not a name of the Hub"),
        (("--to", "hf", "--out", "runs", "--force"), "runs holds plays, which is not part of an export"),
        (("--to", "hf", "--out", "other.txt", "--force"), "other.txt is a file, and hf is a folder"),
        (("--to", "gguf", "--out", "runs", "--force"), "runs is a folder, and gguf is a file"),
        (("--to", "safetensors", "--out", "runs/plays/best.pt", "--force"), "is the model that is to be"),
        (("--to", "hf", "--out", "."), "--out '.' is no name for an export"),
        (("--to", "gguf", "--out", "a\nSYSTEM b.gguf"), "--out 'a\\nSYSTEM b.gguf' is no name"),
        (("--to", "gguf", "--out", "link.gguf"), "link.gguf exists"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    arguments: tuple[str, ...], complaint: str, folder: Path
) -> None:
    (folder / "link.gguf").symlink_to("nowhere")
    (folder / "other.txt").touch()
    done = cpulm(folder, "export", "runs/plays", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert names(folder) == {"runs", "link.gguf", "other.txt"}
    assert names(folder / "runs" / "plays") == {"best.pt"}


def test_a_link_to_an_empty_folder_is_replaced(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("empty")
    assert cpulm(folder, "export", "runs/plays", "--to", "hf", "--out", "link").returncode == 0
    assert names(folder) == {"runs", "empty", "link"}
    assert names(folder / "link") == HF_FILES


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file")
def test_a_device_is_not_replaced(folder: Path) -> None:
    done = cpulm(folder, "export", "runs/plays", "--to", "page", "--out", "/dev/null", "--force")
    assert (done.returncode, Path("/dev/null").is_char_device()) == (2, True)
    assert "/dev/null is a device, and page is a file" in done.stderr


def test_a_block_that_nobody_knows_can_only_be_bare_weights(tmp_path: Path) -> None:
    model = a_model(257, mlp="relu2")
    settings = Settings.model_validate({"model": model.settings.model_dump()})
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    checkpoints.save(
        Checkpoint(settings, byte_tokenizer().to_json(), 257, True, weights), tmp_path / "model.pt"
    )
    for to in ("hf", "gguf"):
        done = cpulm(tmp_path, "export", "model.pt", "--to", to, "--out", "out")
        assert done.returncode == 2
        assert "has this block: model.mlp = relu2" in done.stderr
        assert names(tmp_path) == {"model.pt"}
    assert cpulm(tmp_path, "export", "model.pt", "--to", "safetensors", "--out", "out").returncode == 0


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    done = cpulm(folder, "export", "runs/plays", "--to", "gguf")
    assert done.returncode == 2
    assert "GGUF files need the package gguf, which is not installed\n hint: pip install gguf" in done.stderr


def test_push_creates_a_private_repository_and_uploads_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/me/plays")
    api.upload_folder.return_value = "https://huggingface.co/me/plays/commit/1"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    command = ("export", "runs/plays", "--to", "hf", "--push", "plays")
    assert "hint: log in with `hf auth login`" in cpulm(folder, *command).stderr
    assert names(folder) == {"runs"}
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "not a token")
    done = cpulm(folder, *command)
    assert "uploaded: https://huggingface.co/me/plays/commit/1" in done.stderr
    api.create_repo.assert_called_once_with("plays", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/plays"
    assert api.upload_folder.call_args.kwargs["folder_path"] == Path("plays-hf")
    api.upload_folder.side_effect = ConnectionError("no network")
    done = cpulm(folder, *command, "--force")
    assert done.returncode == 5
    assert "error: cannot upload to plays: no network" in done.stderr
    assert names(folder / "plays-hf") == HF_FILES


@has_limits
@pytest.mark.parametrize("to", ["hf", "gguf", "page", "safetensors"])
def test_a_full_disk_is_said_and_nothing_is_left(to: str, folder: Path) -> None:
    with full_disk(10_000):
        done = cpulm(folder, "export", "runs/plays", "--to", to, "--out", "model")
    assert done.returncode == 5, done.stderr
    assert "error: no space to write model: " in done.stderr
    assert " hint: free some disk space" in done.stderr
    assert names(folder) == {"runs"}
