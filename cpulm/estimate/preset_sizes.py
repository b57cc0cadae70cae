"""Describes presets: computes sizes and requirements from their settings."""

from __future__ import annotations

from dataclasses import dataclass

from cpulm.estimate.memory import expected_arithmetic, memory_bytes
from cpulm.model.counts import count
from cpulm.preset_files import preset_names
from cpulm.settings.resolve_settings import load_preset, resolve
from cpulm.system.machine import Machine

CHARACTERS = 66
"""The assumed size of a character vocabulary: about the number of different characters in an English text."""


@dataclass(frozen=True)
class PresetDescription:
    """One preset. Sizes are for its own vocabulary; ``time`` is that of a laptop with 4 cores."""

    name: str
    title: str
    time: str
    vocab_size: int
    params_total: int
    params_non_embedding: int
    tokens_per_step: int
    steps: int | None
    memory_bytes: int


def describe_presets(machine: Machine) -> list[PresetDescription]:
    """Describe every preset as trained on ``machine``, in the order that the presets define."""
    described = []
    for name in preset_names():
        _, about = load_preset(name)
        settings = resolve(preset=name)
        vocab_size = settings.data.vocab_size or CHARACTERS
        counts = count(settings.model, vocab_size)
        description = PresetDescription(
            name=name,
            title=str(about["title"]),
            time=str(about["time"]),
            vocab_size=vocab_size,
            params_total=counts.total,
            params_non_embedding=counts.non_embedding,
            tokens_per_step=settings.tokens_per_step,
            steps=settings.train.steps,
            memory_bytes=memory_bytes(settings, vocab_size, expected_arithmetic(settings, machine)),
        )
        described.append((int(about["order"]), description))
    return [description for _, description in sorted(described, key=lambda pair: pair[0])]
