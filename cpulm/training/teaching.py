"""A run's teacher: read where the user names it, and its weights kept in the run's own folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cpulm.cache_dir import expand_home
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import best_checkpoint
from cpulm.checkpoints.weights_alone import weights_alone
from cpulm.command import typed
from cpulm.data.tokenfile import TOKENIZER, TokenFolder
from cpulm.errors import DataError, SettingsError
from cpulm.events import Listener, Notice
from cpulm.model.counts import count
from cpulm.run_dir import RunDir
from cpulm.settings import ModelSettings, Settings, changed


def with_absolute_models(settings: Settings) -> Settings:
    """The same settings with absolute paths of the models that they name, which mean the same from any
    folder."""
    named = {"teacher": settings.train.teacher, "init_from": settings.train.init_from}
    paths = {key: str(expand_home(path).absolute()) for key, path in named.items() if path is not None}
    return changed(settings, train=changed(settings.train, **paths)) if paths else settings


def teacher_of(settings: Settings, tokens: TokenFolder, emit: Listener) -> Checkpoint | None:
    """Read the teacher that a new run's settings name, without its optimizer states; None if they name none.

    Raises:
        DataError: if there is no checkpoint, it is damaged, or its tokenizer is not that of ``tokens``.
        SettingsError: if it was trained on shorter sequences than this run has.
    """
    train, block_size = settings.train, settings.model.block_size
    if train.teacher is None:
        return None

    def warn(message: str) -> None:
        emit(Notice(level="warning", message=message))

    try:
        checkpoint, used, tokenizer = best_checkpoint(expand_home(train.teacher), warn)
    except DataError as error:
        hint = "give a run or an intact checkpoint: --teacher runs/tiny-1, or --teacher runs/tiny-1/best.pt"
        raise DataError(f"the teacher cannot be read: {error.message}", hint) from error
    if tokenizer.to_json() != tokens.tokenizer.to_json():
        raise DataError(
            f"the teacher {used} has another tokenizer than this run: its vocabulary has "
            f"{tokenizer.vocab_size:,} entries, this run's has {tokens.vocab_size:,}",
            _tokenizer_hint(checkpoint),
        )
    longest = checkpoint.settings.model.block_size
    if longest < block_size:
        raise SettingsError(
            f"the teacher {used} was trained with a block size of {longest}, and this run has {block_size}",
            f"give this run a block size that both know: --block-size {longest}",
        )
    return weights_alone(checkpoint)


def teacher_shape(settings: Settings, teacher: Checkpoint | None, vocab_size: int) -> ModelSettings | None:
    """The largest model that teaches in the run; None if none does."""
    shapes = [settings.model] if settings.train.generations > 1 else []
    if teacher is not None:
        shapes.append(teacher.settings.model)
    return max(shapes, key=lambda shape: count(shape, vocab_size).total, default=None)


def keep_teacher(teacher: Checkpoint, run: RunDir) -> str:
    """Write the weights of ``teacher`` into the run's folder: a run depends on no files outside of it.

    Returns:
        The digest of the weights, by which :func:`kept_teacher` finds them.

    Raises:
        ResourceError: if the disk is full.
    """
    teacher = weights_alone(teacher)
    digest = _digest(teacher)
    checkpoints.save(teacher, run.teacher(digest))
    return digest


def kept_teacher(
    run: RunDir, checkpoint: Checkpoint, emit: Listener, *, without: bool = False
) -> Checkpoint | None:
    """Read the weights that taught the run's model when ``checkpoint`` was saved; None if none did.

    Args:
        without: whether to return None, with a warning, instead of raising DataError.

    Raises:
        DataError: if they are gone or damaged, or the file has those of another model.
    """
    digest = checkpoint.state.teacher
    if not digest:
        return None
    try:
        return _read(run.teacher(digest), digest)
    except DataError as error:
        if without:
            emit(Notice(level="warning", message=f"{error.message}: the run continues without a teacher"))
            return None
        raise DataError(
            error.message,
            "bring the file back, or continue without a teacher: "
            f"`cpulm resume {typed(run.path)} --without-teacher`",
        ) from error


def _read(path: Path, digest: str) -> Checkpoint:
    if not path.is_file():
        raise DataError(f"{path}, the teacher of this run, is gone")
    teacher = checkpoints.load(path)
    if _digest(teacher) != digest:
        raise DataError(f"{path} is not the teacher of this run: its weights differ")
    checkpoints.require_fit(teacher)
    return teacher


def _digest(checkpoint: Checkpoint) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name, value in checkpoint.model_state.items():
        state.update(name.encode())
        state.update(value.numpy().tobytes())
    return state.hexdigest()


def _tokenizer_hint(checkpoint: Checkpoint) -> str:
    tokenizer = Path(checkpoint.data.get("path", "")) / TOKENIZER
    if tokenizer.is_file():
        return f"use the teacher's tokenizer: --tokenizer {typed(tokenizer)}"
    return "give this run the text, data.tokenizer and data.vocab_size of the teacher's run"
