"""train_cpu.sh and train_cpu.bat after the set-up: train, summarize, show a sample."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICK = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {tokenizer: byte, vocab_size: null, source: rhyme.txt}
train: {micro_batch_size: 4, steps: 4, warmup_steps: 1}
eval: {every: 4}
sample: {max_new_tokens: 5}
runtime: {threads: 1, compile: "off"}
log: {report: false}
"""
# The set-up is another matter: here the programs are those of the Python that runs the tests.
SCRIPT = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
import environment, train_cpu
environment.prepare = lambda *given: None
here = pathlib.Path(sys.executable)
environment.program = lambda venv, name: here if name == "python" else here.parent / name
sys.exit(train_cpu.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_script_ends_with_a_summary_and_a_sample(tmp_path: Path) -> None:
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (tmp_path / "quick.yaml").write_text(QUICK)
    command = [sys.executable, "-c", SCRIPT, "--config", "quick.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = Path("runs/run-1")
    page = (tmp_path / run / "summary.md").read_text(encoding="utf-8")
    assert "step 4 of 4 (100%)" in page
    assert page in done.stderr
    assert page not in done.stdout
    trained, told, wrote = (done.stderr.index(text) for text in ("step 4/4", page, "What the model writes"))
    assert trained < told < wrote
