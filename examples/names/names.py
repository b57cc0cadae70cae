"""Names of classes, functions, exceptions and constants, learnt from the Python library of this machine.

    python examples/names/names.py

Nothing is downloaded: the names are in the library's sources. The model writes names without a rule,
to see whether it has learnt how each is written, and with one.
"""

import argparse
import ast
import csv
import io
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HERE = Path(__file__).parent
STYLES = {
    "class": r"_?[A-Z][A-Za-z0-9]*",
    "exception": r"_?[A-Z][A-Za-z0-9]*(Error|Exception|Warning|Exit|Interrupt)",
    "function": r"_*[a-z][a-z0-9_]*",
    "constant": r"_?[A-Z][A-Z0-9_]*",
}
"""How names of each kind are written, most of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/names"))
    parser.add_argument("--names", type=int, default=200, help="names of each kind to write")
    parser.add_argument("--seed", type=int, default=1)
    asked, more = parser.parse_known_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    table, run = asked.out / "names.csv", asked.out / "run"
    known = write_table(table)
    if not run.exists():
        settings = ("--config", str(HERE / "names.yaml"), "--out", str(run), "--headless")
        cpulm("train", str(table), *settings, *more)
    cpulm("evaluate", str(run))
    print(
        f"\n{'kind':>10} {'known':>7} {'in style':>9} {'written':>8} {'in style':>9} {'new':>5}  with a rule"
    )
    for kind, style in STYLES.items():
        of_kind = [name for name, its in known.items() if its == kind]
        free = generate(run, kind, asked.names, asked.seed)
        ruled = generate(run, kind, 5, asked.seed, "--regex", style)
        assert all(re.fullmatch(style, name) for name in ruled)
        shares = [
            sum(bool(re.fullmatch(style, name)) for name in names) / len(names) for names in (of_kind, free)
        ]
        new = sum(name not in known for name in free) / len(free)
        print(
            f"{kind:>10} {len(of_kind):>7} {shares[0]:>9.1%} {len(free):>8} {shares[1]:>9.1%} {new:>5.0%}  "
            + " ".join(ruled)
        )


def write_table(path: Path) -> dict[str, str]:
    """Write the names in the library's sources, each once with its kind, and return them."""
    found: dict[str, str] = {}
    for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in source.parts or "test" in source.parts or "tests" in source.parts:
            continue
        try:
            tree = ast.parse(source.read_bytes())
        except SyntaxError:
            continue
        for name, kind in names_in(tree):
            if 3 <= len(name) <= 40 and name.isascii() and not name.startswith("__"):
                found.setdefault(name, kind)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("kind", "name"))
        rows.writerows((kind, name) for name, kind in found.items())
    return found


def names_in(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            raised = any(base.endswith(("Error", "Exception", "Warning")) for base in bases)
            yield node.name, "exception" if raised else "class"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, "function"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    yield target.id, "constant"


def generate(run: Path, kind: str, count: int, seed: int, *rule: str) -> list[str]:
    """Let the model write names of a kind."""
    how = ("--rows", "--num-samples", str(count), "--temperature", "1", "--top-k", "0", "--seed", str(seed))
    text = cpulm("generate", str(run), "--field", f"kind={kind}", *how, *rule)
    return [row["name"] for row in csv.DictReader(io.StringIO(text))]


def cpulm(*arguments: str) -> str:
    """Run cpulm; return what it printed on stdout for ``generate``, else show it."""
    began, stdout = time.time(), subprocess.PIPE if arguments[0] == "generate" else None
    if stdout is None:
        print("$ cpulm", " ".join(arguments), flush=True)
    command = [sys.executable, "-m", "cpulm", *arguments]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.DEVNULL if stdout else None, text=True, check=True
    )
    if stdout is None:
        print(f"{time.time() - began:.0f} s", flush=True)
    return done.stdout or ""


if __name__ == "__main__":
    main()
