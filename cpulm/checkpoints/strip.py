"""Leaves of a finished run the weights of its best model alone."""

from __future__ import annotations

from cpulm.checkpoints.checkpoint import load, save
from cpulm.checkpoints.weights_alone import weights_alone
from cpulm.run_dir import RunDir


def keep_weights_alone(run: RunDir) -> None:
    """Rewrite ``best.pt`` without what continues training, and delete ``latest.pt``.

    Raises:
        DataError: if ``best.pt`` is damaged; then nothing is changed.
        ResourceError: if the disk is full; then nothing is changed.
    """
    save(weights_alone(load(run.best)), run.best)
    run.latest.unlink(missing_ok=True)
