"""The modules that a fresh interpreter loads for each command, on which start-up time depends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import sys
sys.argv = ["cpulm", *sys.argv[1:]]
from cpulm.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
print("\\nLOADED", code, *sorted(sys.modules))
"""
HEAVY = {"torch", "numpy", "tokenizers", "tensorboard", "transformers", "cpulm.ui.dashboard"}


def loaded(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    mark, code, *modules = done.stdout.splitlines()[-1].split()
    assert (mark, code) == ("LOADED", "0"), done.stdout + done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("sysinfo", "--help"), ("train", "--help"), ("generate", "--help")],
    ids=" ".join,
)
def test_help_loads_nothing_but_the_command_line(arguments: tuple[str, ...]) -> None:
    modules = loaded(*arguments)
    assert "typer" in modules
    assert modules & (HEAVY | {"yaml", "psutil", "cpulm.settings", "cpulm.system.machine"}) == set()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_compiles_nothing_imports_no_compiler(
    optimizer: str, tmp_path: Path, fresh_cache: Path
) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60, encoding="utf-8")
    small = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=16")
    data = ("data.tokenizer=byte", "data.vocab_size=null")
    settings = (*small, *data, f"train.optimizer={optimizer}", "log.report=false")
    sets = [argument for setting in settings for argument in ("--set", setting)]
    run = ("--data", str(text), "--out", str(tmp_path / "run"), "--steps", "2", "--headless")
    modules = loaded("train", *run, *sets, "--device", "cpu")
    assert "torch" in modules
    assert modules & {"torch._dynamo", "torch._inductor", "sympy"} == set()


@pytest.mark.parametrize("arguments", [("sysinfo",), ("sysinfo", "--json")], ids=" ".join)
def test_sysinfo_loads_what_it_measures_with_and_no_more(arguments: tuple[str, ...]) -> None:
    modules = loaded(*arguments)
    assert {"psutil", "cpulm.system.machine"} <= modules
    assert modules & (HEAVY | {"yaml", "cpulm.settings"}) == set()
