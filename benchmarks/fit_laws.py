"""Fits the law that plans runs to the table of measured runs, and writes it.

    python benchmarks/fit_laws.py [--add laws] [--write]

The table ``benchmarks/laws.tsv`` has a line for each measured loss: text, level and slope of its curve by
n-grams, million parameters without embeddings, trained and unique megabytes, dropout, bits per byte, and the
run that it comes from. ``--add`` adds the results of ``benchmarks/laws.py`` to it. The law and its residuals
are printed; ``--write`` writes the law to ``cpulm/estimate/learning_law.json``, too.

The exponents and the worth of repetitions are searched on a grid; floor and factors follow by least squares
of relative residuals, with no negative factor. Each text has a level of its own in the fit, held near one,
because its n-grams say only roughly how hard it is for a model.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cpulm.estimate.learning_law import LearningLaw, TextCurve, measured_law
from cpulm.estimate.recipe import regularization

TABLE = Path(__file__).parent / "laws.tsv"
LAW = Path(__file__).parent.parent / "cpulm" / "estimate" / "learning_law.json"
COLUMNS = ("text", "level", "slope", "params", "trained", "unique", "dropout", "bits_per_byte", "run")
ALPHAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
BETAS = (0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.22, 0.26, 0.3)
REPEATS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
Exponents: TypeAlias = tuple[Sequence[float], Sequence[float], Sequence[float]]
_TEXT_SPREAD = 0.05
"""What is assumed of levels before the fit: the standard deviation of their logarithms."""
_RUN_SPREAD = 0.025
_PLANNED_RUN_SPREAD = 0.075
"""That of nine runs of plans (benchmarks/EXPERIMENTS.md, "Plans and their runs")."""
_ROUNDS = 6
_TOKEN_BYTES = 3.0
_LEAST_TRAINED = 0.2
"""Bytes for each parameter: no plan trains so little."""


def rows() -> list[dict[str, Any]]:
    """The lines of the table, numbers as numbers."""
    with TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    return [
        {key: line[key] if key in ("text", "run") else float(line[key]) for key in COLUMNS} for line in lines
    ]


def add(results: Path) -> None:
    """Add the losses of a folder of results: at each moment the better of weights and average."""
    new = []
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        if one["schedule"] != "constant":
            continue
        split = f", BPE dropout {one['bpe_dropout']}" if one.get("bpe_dropout") else ""
        a_token, best = one["train_bytes"] / one["train_tokens"], math.inf
        for tokens, raw, averaged in one["validations"]:
            best = min(best, raw, averaged)
            values = (
                one["text"],
                f"{one['level']:.3f}",
                f"{one['slope']:.4f}",
                f"{one['non_embedding'] / 1e6:.3f}",
                f"{tokens * a_token / 1e6:.3f}",
                f"{one['train_bytes'] / 1e6:.3f}",
                one["dropout"],
                f"{best / math.log(2) / one['bytes_per_token']:.4f}",
                f"grid {one['n_layer']} x {one['n_embd']}, weight decay {one['weight_decay']}{split}",
            )
            new.append(dict(zip(COLUMNS, values, strict=True)))

    def run(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["text"], row["run"], *(float(row[name]) for name in ("params", "unique", "dropout"))

    again = {run(row) for row in new}
    with TABLE.open(newline="") as file:
        old = [row for row in csv.DictReader(file, delimiter="\t") if run(row) not in again]
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*old, *new])


def envelope(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of runs that differ only in regularization, the best at each moment but the first ones.

    Without the moments of runs that split tokens where a plan would not, or the other way round.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table:
        if row["trained"] < _LEAST_TRAINED * row["params"]:
            continue
        passes, text_tokens = row["trained"] / row["unique"], row["unique"] / _TOKEN_BYTES
        planned = regularization(max(1.0, passes), row["params"], text_tokens, splits=True)
        if (planned.bpe_dropout > 0) != ("BPE dropout" in row["run"]):
            continue
        key = tuple(row[name] for name in ("text", "params", "trained", "unique"))
        if key not in best or row["bits_per_byte"] < best[key]["bits_per_byte"]:
            best[key] = row
    return list(best.values())


EXPONENTS: Exponents = (ALPHAS, BETAS, REPEATS)


def fit(
    table: list[dict[str, Any]], exponents: Exponents = EXPONENTS
) -> tuple[LearningLaw, dict[str, float], np.ndarray[Any, Any]]:
    """The law, the level of each text, and the logarithm of measured over expected of each line."""
    texts = sorted({row["text"] for row in table})
    which = np.array([texts.index(row["text"]) for row in table])
    params, trained, unique, loss, height, slope = (
        np.array([row[name] for row in table])
        for name in ("params", "trained", "unique", "bits_per_byte", "level", "slope")
    )
    # A run counts as much with many moments as with one.
    runs: dict[str, int] = defaultdict(int)
    for row in table:
        runs[row["text"] + row["run"]] += 1
    weight = np.array([4.0 / runs[row["text"] + row["run"]] for row in table])
    passes = trained / np.minimum(trained, unique)
    best: tuple[float, Any, Any, Any] = (math.inf, None, None, None)
    for alpha, beta, repeats in itertools.product(*exponents):
        worth = np.minimum(trained, unique) * (1 + repeats * (1 - np.exp(-(passes - 1) / repeats)))
        bits = height * worth**-slope
        terms = np.c_[np.ones_like(params), params**-alpha, worth**-beta]
        level = np.zeros(len(texts))
        for _ in range(_ROUNDS):
            scale = np.exp(level)[which] * bits / loss * weight**0.5
            factors = _non_negative(terms * scale[:, None], weight**0.5)
            misfit = np.log(loss / bits / (terms @ factors)) - level[which]
            for text in range(len(texts)):
                here = which == text
                strength = weight[here].sum() / _RUN_SPREAD**2
                change = (misfit[here] * weight[here]).sum() / _RUN_SPREAD**2 - level[text] / _TEXT_SPREAD**2
                level[text] += change / (strength + 1 / _TEXT_SPREAD**2)
            misfit = np.log(loss / bits / (terms @ factors)) - level[which]
        cost = float((weight * misfit**2).sum() / _RUN_SPREAD**2 + (level**2).sum() / _TEXT_SPREAD**2)
        if cost < best[0]:
            best = (
                cost,
                (alpha, beta, repeats, factors),
                dict(zip(texts, level, strict=True)),
                misfit,
            )
    _, (alpha, beta, repeats, factors), levels, misfit = best
    usual = float(np.mean(list(levels.values())))
    levels = {text: level - usual for text, level in levels.items()}
    factors = factors * math.exp(usual)
    spread = float(np.sqrt((weight * misfit**2).sum() / weight.sum()))
    law = LearningLaw(
        floor=round(float(factors[0]), 4),
        a=round(float(factors[1]), 4),
        alpha=alpha,
        b=round(float(factors[2]), 4),
        beta=beta,
        repeats=repeats,
        text_spread=round(float(np.std(list(levels.values()))), 3),
        run_spread=round(max(_PLANNED_RUN_SPREAD, spread), 3),
        most_passes=float(math.floor((passes).max())),
        sizes=(float(params.min() * 1e6), float(params.max() * 1e6)),
        levels=(float(height.min()), float(height.max())),
    )
    return law, levels, misfit


def level_of_other_texts(table: list[dict[str, Any]], law: LearningLaw) -> float:
    """The standard deviation of the level of a text that was left out of the fit."""
    levels = []
    exponents = (law.alpha,), (law.beta,), (law.repeats,)
    for text in {row["text"] for row in table}:
        others, _, _ = fit([row for row in table if row["text"] != text], exponents)
        left_out = [row for row in table if row["text"] == text]
        misfit = [math.log(row["bits_per_byte"] / _expected(others, row)) for row in left_out]
        levels.append(float(np.mean(misfit)))
    return float(np.sqrt(np.mean(np.square(levels))))


def _expected(law: LearningLaw, row: dict[str, Any]) -> float:
    params, trained, unique = (row[name] * 1e6 for name in ("params", "trained", "unique"))
    return law.expected(params, trained, unique, TextCurve(row["level"], row["slope"])).loss


def _non_negative(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Least squares with no negative factor, by trying which are zero."""
    best: tuple[float, np.ndarray[Any, Any]] = (math.inf, np.zeros(left.shape[1]))
    for used in itertools.product((False, True), repeat=left.shape[1]):
        chosen = np.flatnonzero(used)
        if not len(chosen):
            continue
        found, *_ = np.linalg.lstsq(left[:, chosen], right, rcond=None)
        rest = float(((left[:, chosen] @ found - right) ** 2).sum())
        if (found >= 0).all() and rest < best[0]:
            factors = np.zeros(left.shape[1])
            factors[chosen] = found
            best = (rest, factors)
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="results of benchmarks/laws.py")
    parser.add_argument("--write", action="store_true", help="write the law that ships with cpulm")
    arguments = parser.parse_args()
    if arguments.add:
        add(arguments.add)
    table = envelope(rows())
    law, levels, misfit = fit(table)
    params = [row["params"] * 1e6 for row in rows()]
    law = replace(
        law, text_spread=round(level_of_other_texts(table, law), 3), sizes=(min(params), max(params))
    )
    print(json.dumps(asdict(law), indent=2))
    print({text: f"{math.exp(level):.3f}" for text, level in levels.items()})
    for row, one in zip(table, misfit, strict=True):
        print(
            f"{row['text']:12} {row['params']:7.3f} M {row['trained']:7.3f} of {row['unique']:7.3f} MB  "
            f"{row['bits_per_byte']:.4f}  {100 * one:+5.1f}%  {row['run']}"
        )
    if arguments.write:
        LAW.write_text(json.dumps(asdict(law), indent=2) + "\n")
        measured_law.cache_clear()


if __name__ == "__main__":
    main()
