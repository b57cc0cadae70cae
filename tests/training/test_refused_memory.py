"""Memory that the system refuses before the first update is one message with a hint, and leaves no folder."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from small_runs import record, settings_for

from cpulm.errors import ResourceError
from cpulm.events import Event, Progress
from cpulm.training import run as runs


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
def test_memory_refused_while_a_step_is_measured(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)

    def show(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "measuring a step" and not event.finished:
            most = psutil.Process().memory_info().vms + (32 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))

    settings = settings_for(text, "model.n_embd=1024", "model.n_layer=2")
    try:
        with pytest.raises(ResourceError, match=r"^out of memory while the run is prepared: ") as caught:
            runs.train(settings, tmp_path / "run", show=show, record=record)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "train.micro_batch_size" in caught.value.hint
    assert not (tmp_path / "run").exists()
