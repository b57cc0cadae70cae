"""Damages or truncates files of a run and of its tokens, and checks that this is detected and reported.

A case damages one file in one place and does with it what cpulm does. Either the damage is noticed, with an
error a user can read, or it was harmless: what is read is what was written, so the weights come out the same.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.soak import small
from benchmarks.soak.counted import counted
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import CpulmError
from cpulm.run_dir import RunDir
from cpulm.settings.resolve_settings import resolve

RESUMED = 20
"""Number of damaged checkpoints that are also resumed from, to the end."""

Read = Callable[[Path], Any]


def damage(count: int, seed: int = 1, resumed: int = RESUMED) -> dict[str, Any]:
    """Run ``count`` cases over all files, and ``resumed`` more that are resumed; return the results."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small.own_cache(folder / "cache")
        text = small.write_text(folder)
        calm = RunDir(folder / "calm")
        small.train(small.settings_for(text), calm.path)
        (tokens,) = {path.parent for path in (folder / "cache").rglob("meta.json")}
        files = {
            calm.latest: small.course,
            calm.best: small.course,
            calm.settings: lambda path: resolve(config=path),
            **{tokens / name: _tokens for name in ("meta.json", "tokenizer.json", "train.bin", "val.bin")},
        }
        outcomes: dict[str, Counter[str]] = {path.name: Counter() for path in files}
        crashes: list[str] = []
        whole = {path: (path.read_bytes(), read(path)) for path, read in files.items()}
        for case in counted("damage", count):
            path = list(files)[case % len(files)]
            content, expected = whole[path]
            damaged, what = _damaged(content, rng)
            path.write_bytes(damaged)
            outcome = _outcome(path, files[path], expected)
            path.write_bytes(content)
            outcomes[path.name][outcome] += 1
            if outcome.startswith("crash"):
                crashes.append(f"{path.name}, {what}: {outcome}")
        gone_past = sum(_resumes(calm, folder / "again", rng) for _ in range(resumed))
        return {
            "cases": count,
            "files": {name: dict(counter) for name, counter in outcomes.items()},
            "crashes": crashes,
            "resumed_past_a_damaged_checkpoint": gone_past,
            "of": resumed,
        }


def _damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change one bit or byte, or, in one case of four, cut off the end; say which."""
    at = rng.randrange(len(content))
    if rng.random() < 0.25:
        return content[:at], f"cut at {at}"
    byte = content[at] ^ rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
    return content[:at] + bytes([byte]) + content[at + 1 :], f"byte {at} became {byte}"


def _outcome(path: Path, read: Read, expected: Any) -> str:
    try:
        found = read(path)
    except CpulmError as error:
        return "noticed" if error.message and error.hint else "crash: an error without a message and a hint"
    except BaseException:
        return f"crash: {traceback.format_exc()[-600:]}"
    return "harmless" if small.equal(found, expected) else "other values"


def _tokens(path: Path) -> Any:
    """Read a token folder and compare its digests, as before every run."""
    folder = TokenFolder.open(path.parent)
    folder.verify()
    facts = (folder.digest, folder.vocab_size, folder.bytes_per_token, folder.train_documents)
    return facts, np.array(folder.train).tolist(), np.array(folder.val).tolist(), folder.tokenizer.to_json()


def _resumes(calm: RunDir, out: Path, rng: random.Random) -> bool:
    """Whether a run whose newest checkpoint is damaged continues from the previous one, to the same end."""
    shutil.copytree(calm.path, out)
    run = RunDir(out)
    try:
        run.best.unlink()
        shutil.copy(run.latest, run.numbered(24))
        newest = [run.latest, run.numbered(24)]
        for path in newest:
            path.write_bytes(_damaged(path.read_bytes(), rng)[0])
        small.resume(out)
        same = small.equal(small.course(run.latest), small.course(calm.latest))
        return same and small.recorded_steps(run) == small.recorded_steps(calm)
    finally:
        shutil.rmtree(out)


def is_good(result: dict[str, Any]) -> bool:
    """No crash, every damaged checkpoint skipped, and only settings read as other values.

    The settings in ``settings.yaml`` are for people: a run goes on with those in its checkpoint.
    """
    files = {name: outcomes for name, outcomes in result["files"].items() if name != "settings.yaml"}
    unnoticed = sum(outcomes.get("other values", 0) for outcomes in files.values())
    gone_past = result["resumed_past_a_damaged_checkpoint"] == result["of"]
    return gone_past and not unnoticed and not result["crashes"]


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [f"{result['cases']:,} cases"]
    for name, outcomes in result["files"].items():
        known = {name: number for name, number in outcomes.items() if not name.startswith("crash")}
        lines.append(
            f"  {name:<16}" + ", ".join(f"{number} {what}" for what, number in sorted(known.items()))
        )
    lines.append(f"  crashes: {len(result['crashes'])}")
    lines += [f"    {crash}" for crash in result["crashes"][:5]]
    resumed, of = result["resumed_past_a_damaged_checkpoint"], result["of"]
    lines.append(f"  {resumed} of {of} runs went on past a damaged checkpoint to the same weights")
    return lines
