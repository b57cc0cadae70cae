"""Which architecture that other programs load has the block of a model, if any.

Every program that loads models knows architectures by name; a model is exported as the one that computes the
same. Fixed sinusoidal positions, no positions and missing biases are special cases of GPT-2's learned ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from cpulm.errors import SettingsError
from cpulm.layer_shapes import ACTIVATIONS
from cpulm.settings import ModelSettings

Architecture = Literal["qwen3", "llama", "gpt2"]

_Test = Callable[[ModelSettings], bool]


def _is(*allowed: Any, of: str) -> tuple[str, str, _Test]:
    return of, " or ".join(map(_yaml, allowed)), lambda settings: getattr(settings, of) in allowed


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mlp(*, gated: bool) -> tuple[str, str, _Test]:
    return _is(*(name for name, traits in ACTIVATIONS.items() if traits.gated is gated), of="mlp")


_LLAMA_LIKE = (_is("rmsnorm", of="norm"), _is("rope", of="position"), _mlp(gated=True))
_REQUIREMENTS: Mapping[Architecture, tuple[tuple[str, str, _Test], ...]] = {
    "qwen3": (*_LLAMA_LIKE, _is(True, of="qk_norm"), _is(False, of="bias")),
    "llama": (*_LLAMA_LIKE, _is(False, of="qk_norm")),
    "gpt2": (
        _is("layernorm", of="norm"),
        _is("learned", "sinusoidal", "none", of="position"),
        _mlp(gated=False),
        _is(False, of="qk_norm"),
        ("n_kv_head", "n_head", lambda settings: settings.kv_heads == settings.n_head),
        ("head_dim", "n_embd / n_head", lambda s: s.head_width * s.n_head == s.n_embd),
    ),
}
"""For each architecture the settings of ``model`` that it fixes: name, allowed values in words, test."""

TITLES: Mapping[Architecture, str] = {"qwen3": "Qwen3", "llama": "Llama", "gpt2": "GPT-2"}


def architecture_of(settings: ModelSettings) -> Architecture:
    """Return the architecture that computes what the model computes.

    Raises:
        SettingsError: if there is none; names the settings that stand in the way of the nearest one.
    """
    lacking = {
        name: [(key, allowed) for key, allowed, is_met in requirements if not is_met(settings)]
        for name, requirements in _REQUIREMENTS.items()
    }
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    if not lacking[nearest]:
        return nearest
    found = ", ".join(f"model.{key} = {_yaml(getattr(settings, key))}" for key, _ in lacking[nearest])
    wanted = ", ".join(f"{key} = {allowed}" for key, allowed in lacking[nearest])
    raise SettingsError(
        f"no architecture of transformers or llama.cpp has this block: {found}",
        f"the nearest is {TITLES[nearest]}, with {wanted}; `--to page` takes every block",
    )
