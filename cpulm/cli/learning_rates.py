"""Whether the learning rates that were typed reach what they were meant for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.settings import Settings


def check_rates(settings: Settings, assignments: Iterable[str], flags: Mapping[str, Any]) -> list[str]:
    """Warnings about a learning rate that leaves a part of the model alone.

    Args:
        settings: the resolved ones.
        assignments: of ``--set``, ``key=value``.
        flags: named options, by the settings' keys.

    Raises:
        SettingsError: if Muon's rate was typed, and nothing is trained by Muon.
    """
    typed = {assignment.partition("=")[0].strip() for assignment in assignments} | set(flags)
    train = settings.train
    if train.optimizer == "adamw" and "train.muon_lr" in typed:
        raise SettingsError(
            "train.muon_lr has no effect: train.optimizer is adamw",
            "leave it out, or choose --set train.optimizer=muon",
        )
    if train.optimizer == "muon" and "train.lr" in typed and "train.muon_lr" not in typed:
        return [
            f"train.lr = {train.lr:g} is the rate of embeddings, head and norms; Muon trains the blocks' "
            f"matrices at train.muon_lr = {train.muon_lr:g}, which --muon-lr changes"
        ]
    return []
