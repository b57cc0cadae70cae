"""Exports a trained model in one of the formats, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpulm.atomic import replacing, replacing_folder, write_text
from cpulm.errors import ResourceError, SettingsError
from cpulm.export.formats import Format, Quantization
from cpulm.export.gguf import write_gguf
from cpulm.export.hf import HF_FILES, write_hf
from cpulm.export.html_page import write_page
from cpulm.export.modelfile import modelfile
from cpulm.export.safetensors_file import write_safetensors
from cpulm.export.trained_model import TrainedModel, model_name, read_trained_model
from cpulm.pretrained.gguf_names import require_gguf
from cpulm.typed_json import shown


@dataclass(frozen=True)
class ExportRequest:
    """What to write and where.

    Attributes:
        run: a run's folder or a checkpoint.
        out: the file, or for ``hf`` the folder; None: named after the run, in the current folder.
        quantization: of the matrices in a GGUF file.
        force: whether an earlier export at ``out`` may be replaced.
    """

    run: Path
    to: Format
    out: Path | None = None
    quantization: Quantization = "f16"
    force: bool = False

    @property
    def path(self) -> Path:
        """What is written."""
        if self.out is not None:
            return self.out
        name = model_name(self.run)
        endings = {
            "hf": "-hf",
            "gguf": f"-{self.quantization}.gguf",
            "page": ".html",
            "safetensors": ".safetensors",
        }
        return Path(f"{name}{endings[self.to]}")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        files: all files, a Modelfile beside a GGUF file too.
        limits: what other programs do differently with this model, in words.
    """

    trained: TrainedModel
    path: Path
    files: list[Path]
    limits: list[str]


def export_model(request: ExportRequest, warn: Callable[[str], None]) -> Exported:
    """Export the model; what was there before stays if that fails.

    Raises:
        SettingsError: if something is in the way, a package is missing, or the format has no such model.
        DataError: if there is no checkpoint, or it is damaged.
        ResourceError: if the disk is full or cannot be written.
    """
    path = request.path
    _require_free(request)
    if request.to == "gguf":
        require_gguf()
    trained = read_trained_model(request.run, warn)
    limits: list[str] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.to == "hf":
            with replacing_folder(path) as folder:
                write_hf(trained, folder)
            return Exported(trained, path, sorted(path.iterdir()), limits)
        with replacing(path) as file:
            if request.to == "gguf":
                limits = write_gguf(trained, Path(file.name), request.quantization)
            elif request.to == "page":
                write_page(trained, Path(file.name))
            else:
                write_safetensors(trained, Path(file.name))
        files = [path]
        if request.to == "gguf":
            files.append(_modelfile_of(path))
            write_text(files[-1], modelfile(trained, path))
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}", "choose another --out"
        ) from error
    return Exported(trained, path, files, limits)


def _modelfile_of(path: Path) -> Path:
    """Ollama's description of a model, beside it."""
    return path.with_suffix(".Modelfile")


def _read_files(run: Path) -> set[Path]:
    """What ``run`` is read from."""
    files = [run, *run.glob("*.pt"), *run.glob("*.safetensors")] if run.is_dir() else [run]
    return {file.resolve() for file in files}


def _require_free(request: ExportRequest) -> None:
    """Raise SettingsError if the export would replace something that the user did not name as replaceable."""
    path = request.path
    if path.name in ("", "..") or not path.name.isprintable():
        raise SettingsError(f"--out {shown(str(path))} is no name for an export", "choose another --out")
    if path.exists() and path.resolve() in _read_files(request.run):
        raise SettingsError(f"{path} is the model that is to be exported", "choose another --out")
    if request.to == "hf":
        if path.exists() and not path.is_dir():
            raise SettingsError(f"{path} is a file, and hf is a folder", "choose another --out")
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if foreign := sorted(names - HF_FILES):
            raise SettingsError(
                f"{path} holds {foreign[0]}, which is not part of an export", "choose another --out"
            )
        there = [path] if names else []
    else:
        targets = [path, _modelfile_of(path)] if request.to == "gguf" else [path]
        there = [target for target in targets if os.path.lexists(target)]
        if others := [target for target in there if target.exists() and not target.is_file()]:
            kind = "folder" if others[0].is_dir() else "device"
            raise SettingsError(
                f"{others[0]} is a {kind}, and {request.to} is a file", "choose another --out"
            )
    if there and not request.force:
        raise SettingsError(f"{there[0]} exists", "choose another --out, or replace it with --force")
