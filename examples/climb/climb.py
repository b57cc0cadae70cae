"""MoonBoard routes for a wished grade: trains a model, evaluates it, writes routes and looks at them.

    python examples/climb/climb.py moonboard-train.csv moonboard-val.csv moonboard-test.csv

The three files have a column ``grade`` and a column ``full_path``, a list of holds ``[column, row]``. Figures
go to the terminal, the run, 1,000 routes (``routes.csv``) and a picture of the first one to ``--out``.
"""

import argparse
import ast
import collections
import csv
import math
import subprocess
import sys
import time
from pathlib import Path

import board
import judge
import rules

HERE = Path(__file__).parent
Route = tuple[tuple[int, int], ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("train", "val", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/climb"))
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked, more = parser.parse_known_args()
    run = asked.out / "run"
    if not run.exists():
        data = [str(asked.train), "--val-data", str(asked.val), "--tokenizer", str(HERE / "words.txt")]
        cpulm("train", *data, "--preset", "climb", "--out", str(run), "--headless", *more)
    print("\nEvery test route once, given what is before each token only:")
    cpulm("evaluate", str(run), "--data", str(asked.test))
    known, test = routes_of(asked.train), routes_of(asked.test)
    made = generate(run, asked.out, grades_like(test, asked.routes), asked.seed)
    report(made, test, {holds for _, holds in known}, judge.learn(known))
    grade, holds = made[0]
    picture(asked.out / "route.png", grade, holds)
    print(f"\n{board.as_text(grade, holds)}\n\nthe same as a picture: {asked.out / 'route.png'}")


def cpulm(*arguments: str) -> str:
    """Run cpulm; return what it printed on stdout for ``generate``, else show it."""
    print("$ cpulm", " ".join(arguments), flush=True)
    stdout = subprocess.PIPE if arguments[0] == "generate" else None
    done = subprocess.run([sys.executable, "-m", "cpulm", *arguments], stdout=stdout, text=True, check=True)
    return done.stdout or ""


def routes_of(path: Path) -> list[tuple[str, Route]]:
    with path.open(newline="") as file:
        rows = [(row["grade"], ast.literal_eval(row["full_path"])) for row in csv.DictReader(file)]
    return [(grade, tuple((x, y) for x, y in holds)) for grade, holds in rows]


def grades_like(routes: list[tuple[str, Route]], count: int) -> dict[str, int]:
    """How many routes of each grade make ``count`` in the proportions of ``routes``, at least 20 of each."""
    counts = collections.Counter(grade for grade, _ in routes)
    wanted = {grade: max(20, count * number // len(routes)) for grade, number in sorted(counts.items())}
    most = max(wanted, key=lambda grade: wanted[grade])
    wanted[most] += count - sum(wanted.values())
    return wanted


def generate(run: Path, out: Path, wanted: dict[str, int], seed: int) -> list[tuple[str, Route]]:
    """Write routes of each grade, under the rules of ``rules.py``, and keep them in a table."""
    began, table = time.time(), ["grade,full_path"]
    for grade, count in wanted.items():
        rule = ("--rules", f"{HERE / 'rules.py'}:allowed", "--temperature", "1", "--top-k", "0")
        text = cpulm("generate", str(run), "--field", f"grade={grade}", "--num-samples", str(count), "--rows",
                     "--seed", str(seed), *rule)  # fmt: skip
        table += text.splitlines()[1:]
    (out / "routes.csv").write_text("\n".join([*table, ""]))
    seconds = time.time() - began
    print(f"{sum(wanted.values())} routes in {seconds:.0f} s, with {len(wanted)} starts of cpulm")
    return routes_of(out / "routes.csv")


def report(
    made: list[tuple[str, Route]], test: list[tuple[str, Route]], known: set[Route], grader: judge.Judge
) -> None:
    """Validity, novelty, and what a judge says of the grades, beside the routes of the test file."""
    for name, routes in (("written", made), ("of the test file", test)):
        broken = collections.Counter(filter(None, (rules.broken_rule(list(holds)) for _, holds in routes)))
        new = sum(holds not in known for _, holds in routes) / len(routes)
        different = len({holds for _, holds in routes}) / len(routes)
        bad = ", ".join(f"{rule}: {count}" for rule, count in broken.items()) or "none"
        print(f"\n{len(routes)} routes {name}: rules broken: {bad}")
        print(f"not in the training file {new:.1%}, different {different:.1%}")
    print("\ngrade as wished, and as a judge sees it (mean; share within one grade):")
    print(f"{'':>6} {'written':>22} {'of the test file':>22}")
    for grade in sorted({grade for grade, _ in made}):
        cells = []
        for routes in (made, test):
            judged = [grader.grade(holds) for name, holds in routes if name == grade]
            near = sum(abs(value - judge.number(grade)) <= 1 for value in judged) / max(1, len(judged))
            mean = math.fsum(judged) / max(1, len(judged))
            cells.append(f"{len(judged):>5}  {judge.name(mean):>5}  {near:>6.0%}  ")
        print(f"{grade:>6} {cells[0]:>22} {cells[1]:>22}")
    for name, routes in (("written", made), ("of the test file", test)):
        print(f"{name}: correlation of wished and judged grade {grader.correlation(routes):.2f}")


def picture(path: Path, grade: str, holds: Route) -> None:
    import vl_convert

    path.write_bytes(vl_convert.svg_to_png(board.as_svg(grade, list(holds)), scale=1.5))


if __name__ == "__main__":
    main()
