"""Turns the data settings into a token folder: opened, found in the cache, or built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from cpulm.cache_dir import expand_home
from cpulm.data.copies import warn_of_copies, without_validation
from cpulm.data.encode_corpus import encode_corpus
from cpulm.data.holdout import SPLIT_VERSION
from cpulm.data.readers import check_settings
from cpulm.data.reading import READERS_VERSION, Reading
from cpulm.data.records.seen_values import SeenValues
from cpulm.data.scan import scan
from cpulm.data.sources import SourceFile, find_files
from cpulm.data.split import Corpus, readable
from cpulm.data.token_cache import delete_abandoned, find_cached, token_caches
from cpulm.data.tokenfile import FORMAT_VERSION, TokenFolder, is_token_folder, require_block
from cpulm.data.tokenizer import KINDS, Tokenizer
from cpulm.data.unfinished import Unfinished
from cpulm.data.vocabulary import SAMPLE_BYTES, make_tokenizer, trains_vocabulary, vocabulary_key
from cpulm.data.write import writing_folder
from cpulm.errors import ResourceError, SettingsError, StoppedError
from cpulm.events import Listener, Notice
from cpulm.progress import Stage
from cpulm.settings import DataSettings, Settings, changed
from cpulm.units import format_bytes

_BLOCK_MULTIPLE = 16
_CHECKED_WITHOUT_PROGRESS_BYTES = 1 << 28
_FILES_LISTED = 1000


def prepare(
    data: DataSettings,
    *,
    emit: Listener,
    should_stop: Callable[[], bool],
    block_size: int | None = None,
    out: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> TokenFolder:
    """Return the tokens that ``data`` describes.

    Args:
        data: sources, split and tokenizer. If the source is one prepared token folder, it is opened as it is.
        emit: receives Progress and Notice events, always on the calling thread.
        should_stop: called about ten times a second.
        block_size: refuse tokens if either split is smaller than one such block.
        out: the folder to write; if None, a folder in the user's cache, which the next call finds again.
        tokenizer: the one to use, of a model that exists; None: make the one of ``data``.

    Raises:
        DataError: if a source cannot be used.
        SettingsError: if settings and data do not fit each other.
        ResourceError: if the disk is full.
        StoppedError: if ``should_stop`` returned True; nothing is left behind.
    """
    folder = _open_prepared(data, out)
    if folder is not None:
        check(folder, emit, should_stop)
    else:
        folder = _find_or_build(data, out, tokenizer, emit, should_stop)
    _report_split(folder, emit)
    if tokenizer is None:
        _report_vocabulary(data, folder, emit)
    _report_losses(folder, emit)
    if block_size is not None:
        require_block("train", len(folder.train), block_size)
        require_block("val", len(folder.val), block_size)
    return folder


def prepare_fitting(
    settings: Settings,
    *,
    emit: Listener,
    should_stop: Callable[[], bool],
    block_is_wish: bool,
    tokenizer: Tokenizer | None = None,
) -> tuple[TokenFolder, Settings]:
    """Prepare the data of a run; return its tokens, and the settings with a block size that they hold.

    Args:
        settings: of the run.
        emit: as of :func:`prepare`.
        should_stop: as of :func:`prepare`.
        block_is_wish: take the largest block size that the text allows, if it is less than the settings'.
        tokenizer: as of :func:`prepare`.

    Raises:
        CpulmError: as :func:`prepare`, or if the block size, or even one of 16 tokens, does not fit.
    """
    block, records = settings.model.block_size, settings.train.records
    least = None if block_is_wish or records else block
    tokens = prepare(settings.data, emit=emit, should_stop=should_stop, block_size=least, tokenizer=tokenizer)
    if records:  # a window may be larger than all of them
        return tokens, settings
    fits = fitting_block(tokens, block, emit)
    if fits != block:
        settings = changed(settings, model=changed(settings.model, block_size=fits))
    return tokens, settings


def fitting_block(tokens: TokenFolder, block_size: int, emit: Listener) -> int:
    """Return ``block_size``, or less if a split does not hold such a block; that is said.

    Raises:
        SettingsError: if not even a block of 16 tokens fits.
    """
    split, n_tokens = min((("train", len(tokens.train)), ("val", len(tokens.val))), key=lambda one: one[1])
    if n_tokens > block_size:
        return block_size
    fits = (n_tokens - 1) // _BLOCK_MULTIPLE * _BLOCK_MULTIPLE
    if not fits:
        require_block(split, n_tokens, block_size)
    advice = "; data.val_fraction or --val-data gives it more" if split == "val" else ""
    name = "validation" if split == "val" else "training"
    message = f"block_size is {fits} instead of {block_size}: the {name} split has {n_tokens} tokens{advice}"
    emit(Notice(level="warning", message=message))
    return fits


def _report_split(folder: TokenFolder, emit: Listener) -> None:
    """Say what is held out for validation, if that was decided here."""
    train, val, ends = folder.meta["train"], folder.meta["val"], folder.meta.get("ends_held_out")
    if ends is None or folder.meta.get("val_source"):
        return
    whole = val["documents"] - ends
    counted = [f"{whole:,} whole {'document' if whole == 1 else 'documents'}"] if whole else []
    if ends:
        counted.append("the end of one document" if ends == 1 else f"the ends of {ends:,} documents")
    share = val["bytes"] / (train["bytes"] + val["bytes"])
    what = f"{share:.1%} of the text, {format_bytes(val['bytes'])}: {' and '.join(counted)}"
    emit(Notice(level="info", message=f"held out for validation: {what}"))


def _report_vocabulary(data: DataSettings, folder: TokenFolder, emit: Listener) -> None:
    """Say if the vocabulary is not as large as ``data.vocab_size``, which is a wish."""
    wanted, is_trained = data.vocab_size, trains_vocabulary(folder.tokenizer.kind)
    if wanted is None or wanted == folder.vocab_size or not is_trained or data.tokenizer not in KINDS:
        return
    why = "the token folder has" if is_token_folder(expand_home(data.source[0])) else "the text fills"
    message = f"{why} a vocabulary of {folder.vocab_size:,}, not of {wanted:,} (data.vocab_size)"
    emit(Notice(level="info", message=message))


def _report_losses(folder: TokenFolder, emit: Listener) -> None:
    """Say what of the text was lost: in reading, and by a tokenizer that cannot give it back."""
    losses = folder.lost_in_reading
    for message in losses.choices_in_words():
        emit(Notice(level="info", message=message))
    for message in losses.in_words():
        emit(Notice(level="warning", message=message))
    if folder.lost_share:
        lost = f"the tokenizer loses at least {folder.lost_share:.1%} of the validation text"
        message = f"{lost}: bits per byte are not comparable with those of other tokenizers"
        emit(Notice(level="warning", message=message))


def check(folder: TokenFolder, emit: Listener, should_stop: Callable[[], bool]) -> None:
    """Read a whole token folder and compare it with its digests: about a second per gigabyte.

    Raises:
        DataError: naming the file that is damaged.
        StoppedError: if ``should_stop`` returned True.
    """
    if folder.size_bytes < _CHECKED_WITHOUT_PROGRESS_BYTES:
        folder.verify()
        return
    with Stage("checking the tokens", folder.size_bytes, "bytes", emit, should_stop) as stage:
        folder.verify(stage.advance)


def _open_prepared(data: DataSettings, out: Path | None) -> TokenFolder | None:
    """The token folder if the source is one, or None if it is text."""
    folders = [source for source in (*data.source, *data.val_source) if is_token_folder(expand_home(source))]
    if not folders:
        return None
    if data.weights:
        raise SettingsError(
            "data.weights has no effect on a prepared token folder", "give the weights when it is made"
        )
    if len(data.source) > 1 or data.val_source:
        raise SettingsError(
            f"{folders[0]} is a prepared token folder, with its own training and validation split",
            "give it alone, or give the texts that it was made from",
        )
    if out is not None:
        raise SettingsError(f"{folders[0]} already holds tokens", "give the text that it was made from")
    return TokenFolder.open(expand_home(folders[0]))


def _find_or_build(
    data: DataSettings,
    out: Path | None,
    tokenizer: Tokenizer | None,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> TokenFolder:
    if out is not None:
        _refuse_existing(out)
    val_files = find_files(data.val_source, emit, should_stop)
    files = without_validation(find_files(data.source, emit, should_stop, data.weights), val_files, emit)
    check_settings([*files, *val_files], Reading.of(data))
    key = _cache_key(data, tokenizer, files, val_files)
    if out is None:
        if known := find_cached(key, emit, lambda folder: check(folder, emit, should_stop)):
            return known
        delete_abandoned()
    cache, instead = token_caches()
    target = cache / key if out is None else out
    with _kept_work(target, key, emit) as work:
        corpus = scan_sources(data, files, val_files, emit, should_stop, work)
        if made := work.load("tokenizer"):
            tokenizer = Tokenizer.from_json(made["json"])
        tokenizer = tokenizer or make_tokenizer(data, corpus, emit, should_stop)
        tokenizer = tokenizer.with_special_tokens(corpus.reading.special_tokens)
        if not made and work.due():
            work.save("tokenizer", {"json": tokenizer.to_json()})
        try:
            return _written(data, corpus, tokenizer, work, emit, should_stop, keep_existing=out is None)
        except ResourceError as error:
            if out is not None:
                raise
            failed = error
    advice = "CPULM_CACHE names another folder for the cache"
    emit(Notice(level="warning", message=f"{failed.message}: keeping them in {instead}; {advice}"))
    try:
        return _written(data, corpus, tokenizer, Unfinished(instead / key), emit, should_stop)
    except ResourceError as error:
        raise ResourceError(error.message, f"{advice}; or free some disk space") from failed


@contextmanager
def _kept_work(target: Path, key: str, emit: Listener) -> Iterator[Unfinished]:
    """Work on ``target`` that a later process may continue; say if it does, and if it can."""
    try:
        with Unfinished(target, key) as work:
            if work.kept:
                emit(Notice(level="info", message="continuing the work that was left unfinished"))
            yield work
    except StoppedError:
        if work.kept:
            emit(Notice(level="info", message="the same command continues the work that is done"))
        raise


def _written(
    data: DataSettings,
    corpus: Corpus,
    tokenizer: Tokenizer,
    work: Unfinished,
    emit: Listener,
    should_stop: Callable[[], bool],
    *,
    keep_existing: bool = True,
) -> TokenFolder:
    """Encode the corpus to the folder that is worked on, and open it."""
    how = corpus.reading
    with writing_folder(work, tokenizer, keep_existing=keep_existing, masks_loss=how.masks_loss) as folder:
        seen = SeenValues(how.parsed_template)
        with Stage("tokenizing", corpus.source_bytes, "bytes", emit, should_stop) as stage:
            encode_corpus(corpus, folder, seen, stage)
        folder.finish({**_provenance(data, corpus), "columns": seen.counts()})
    return TokenFolder.open(work.target)


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} exists and is not empty", "choose another --out")
    if out.name in ("", ".."):
        raise SettingsError(f"{out} cannot be the name of a new folder", "give one, such as --out tokens")


def scan_sources(
    data: DataSettings,
    files: Sequence[SourceFile],
    val_files: Sequence[SourceFile],
    emit: Listener,
    should_stop: Callable[[], bool],
    work: Unfinished,
) -> Corpus:
    """Read all files once, as :func:`cpulm.data.scan.scan`, and say what is left out.

    Args:
        work: keeps what is known of the files.
    """
    how = Reading.of(data)
    if kept := work.load("files"):
        binary, val_binary = kept["binary"], kept["val_binary"]
    else:
        warn_of_copies(files, val_files, emit, should_stop)
        binary, val_binary = readable(files, how)[1], readable(val_files, how)[1]
        if work.due():
            work.save("files", {"binary": binary, "val_binary": val_binary})
    text_files, val_text_files = _without(files, binary), _without(val_files, val_binary)
    if left_out := [*binary, *val_binary]:
        first, number = left_out[0], len(left_out)
        what = f"{number} binary files, such as {first}" if number > 1 else f"the binary file {first}"
        emit(Notice(level="info", message=f"left out {what}"))
    total = sum(file.size for file in (*text_files, *val_text_files))
    with Stage("reading", total, "bytes", emit, should_stop) as stage:
        return scan(
            text_files,
            val_text_files,
            val_fraction=data.val_fraction,
            share=data.share,
            how=how,
            dedup=data.dedup,
            collect_characters=data.tokenizer == "char",
            stage=stage,
            work=work,
        )


def _without(files: Sequence[SourceFile], names: Sequence[str]) -> list[SourceFile]:
    left_out = set(names)
    return [file for file in files if file.name not in left_out]


def _provenance(data: DataSettings, corpus: Corpus) -> dict[str, object]:
    """Where the tokens come from, for ``meta.json``."""
    files = [*corpus.files, *corpus.val_files]
    return {
        "source": list(data.source),
        "val_source": list(data.val_source),
        "val_fraction": None if data.val_source else data.val_fraction,
        "share": data.share,
        "weights": data.weights,
        "row_weight": data.row_weight,
        "ends_held_out": len(corpus.held_out.borders) if corpus.held_out is not None else 0,
        "lost_in_reading": asdict(corpus.losses),
        "vocabulary_sample_bytes": SAMPLE_BYTES if trains_vocabulary(data.tokenizer) else None,
        "file_count": len(files),
        "files": [{"name": file.name, "bytes": file.size} for file in files[:_FILES_LISTED]],
    }


def _cache_key(
    data: DataSettings,
    tokenizer: Tokenizer | None,
    files: Sequence[SourceFile],
    val_files: Sequence[SourceFile],
) -> str:
    """A key that changes with everything that would change the tokens."""
    what = [
        vocabulary_key(data, tokenizer),
        data.vocab_size if trains_vocabulary(data.tokenizer) else None,
        None if val_files else data.val_fraction,
        READERS_VERSION,
        *Reading.of(data),
        data.dedup,
        data.share,
        SAMPLE_BYTES,
    ]
    # As one text, a million files would take hundreds of megabytes.
    key = hashlib.blake2b(f"[{FORMAT_VERSION}, {SPLIT_VERSION}, [[".encode(), digest_size=16)
    for part, behind in ((files, "], ["), (val_files, "]], ")):
        for number, file in enumerate(part):
            facts = json.dumps((file.place, file.name, file.size, file.mtime_ns, file.weight))
            key.update(f"{', ' if number else ''}{facts}".encode())
        key.update(behind.encode())
    key.update(json.dumps(what)[1:].encode())
    return key.hexdigest()
