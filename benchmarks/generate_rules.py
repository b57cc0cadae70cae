"""What grammars cost: CPU time of a step with a rule and without, in turns, on one thread.

    python benchmarks/generate.py --rules [--presets 4x192] [--precisions fp32,int8] [--rows 1,8]

Models in the shape of presets with fresh weights, which write any token that the rule allows. The vocabulary
of 4,096 is learned from cpulm's sources. No text can end before its last token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cpulm
from benchmarks.generate_llama import fresh_model
from cpulm.cli.sampling_flags import DEFAULT_TOP_K
from cpulm.data.tokenizer import Tokenizer, train_bpe
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.writing import prepare_to_write
from cpulm.generation.generate import Generation
from cpulm.generation.rules.grammar import GrammarRule, json_grammar, lark_grammar, regex_grammar
from cpulm.generation.rules.rule import RuleSet
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine

OBJECT = {
    "name": {"type": "string"},
    "age": {"type": "integer"},
    "colours": {"type": "array", "items": {"enum": ["red", "blue"]}},
}
SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": OBJECT,
        "required": list(OBJECT),
        "additionalProperties": False,
    },
}
LARK = r"""
start: line{10000}
line: NAME " = " sum "\n"
sum: NAME | NUMBER | sum " + " sum | "(" sum ")"
NAME: /[a-z_]+/
NUMBER: /[0-9]+/
"""


def compare(arguments: argparse.Namespace) -> None:
    """Print a line for each preset, precision and number of texts."""
    assigned = ["runtime.precision=fp32", "runtime.threads=1"]
    runtime = choose_runtime(resolve(assignments=assigned).runtime, read_machine())
    sources = [path.read_text("utf-8") for path in sorted(Path(cpulm.__file__).parent.rglob("*.py"))]
    tokenizer = train_bpe(sources, 4096)
    grammars = {
        "regex": regex_grammar(r"([A-Z][a-z]+( [a-z]+){2,8}\. ){10000}"),
        "JSON": json_grammar(json.dumps(SCHEMA), "schema"),
        "Lark": lark_grammar(LARK),
    }
    print(f"{'':14}{'texts':>6}{'without':>12}  " + "".join(f"{name:>10}" for name in grammars))
    for name in arguments.presets.split(","):
        for precision in arguments.precisions.split(","):
            model = fresh_model(name, tokenizer.vocab_size)
            prepare_to_write(model, runtime, precision)
            for rows in (int(number) for number in arguments.rows.split(",")):
                seconds = seconds_of_steps(model, tokenizer, grammars, rows, arguments)
                show(f"{name:8}{precision:6}{rows:6}", seconds)


def seconds_of_steps(
    model: Transformer,
    tokenizer: Tokenizer,
    grammars: Mapping[str, str],
    rows: int,
    arguments: argparse.Namespace,
) -> dict[str, list[float]]:
    """CPU seconds of a step in each round, by the grammar's name; those of "" are without one."""
    seconds: dict[str, list[float]] = {name: [] for name in ("", *grammars)}
    for turn in range(arguments.rounds):
        for name, its_seconds in seconds.items():
            generation = Generation(
                model,
                [tokenizer.eot_id],
                max_new_tokens=arguments.tokens,
                num_samples=rows,
                sampling=Sampling(temperature=0.8, top_k=DEFAULT_TOP_K),
                seed=turn,
                rules=RuleSet([GrammarRule(tokenizer, name, grammars[name], rows)]) if name else None,
            )
            next(generation)
            began = time.thread_time()
            steps = sum(1 for _ in generation)
            its_seconds.append((time.thread_time() - began) / steps)
    return seconds


def show(case: str, seconds: Mapping[str, Sequence[float]]) -> None:
    """One line: the median without a rule, and by how much each grammar exceeds it in the median round."""
    bare = seconds[""]
    more = [
        statistics.median(own / alone for own, alone in zip(each, bare, strict=True)) - 1
        for name, each in seconds.items()
        if name
    ]
    shown = "".join(f"{each:10.1%}" for each in more)
    print(f"{case}{statistics.median(bare) * 1e6:9.0f} us  {shown}", flush=True)
