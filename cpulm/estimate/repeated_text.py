"""How often a run will see its training text, and how often is too often. Loads no torch."""

from __future__ import annotations

from cpulm.estimate.recipe import learning_rate, regularization, splits_tokens
from cpulm.settings import Settings
from cpulm.units import format_count

MOST_PASSES = 4.0
"""Up to this many passes, repeated text is worth nearly as much as new text (Muennighoff et al., "Scaling
Data-Constrained Language Models", 2023, https://arxiv.org/abs/2305.16264)."""
_TOO_FAST = 3.0
"""Times the rate that suits the passes, of AdamW beside Muon."""


def describe_passes(passes: float) -> str:
    """``33% of the text once``, ``5.3 passes over the text``, ``848 passes over the text``."""
    if passes < 0.995:
        return f"{passes:.0%} of the text once" if passes >= 0.01 else f"{passes:.2%} of the text once"
    return f"{passes:.1f} passes over the text" if passes < 100 else f"{passes:,.0f} passes over the text"


def passes_warning(passes: float | None, train_tokens: int, params: int, settings: Settings) -> str | None:
    """What to say of a run that sees its ``train_tokens`` tokens too often for its settings; else None.

    Args:
        params: of the model, without embeddings.
    """
    if passes is None or passes <= MOST_PASSES:
        return None
    splits = splits_tokens(settings)
    suitable = regularization(passes, params, train_tokens, splits=splits)
    lenient = regularization(passes / 1.5, params, train_tokens, splits=splits)
    width, is_muon = settings.model.n_embd, settings.train.optimizer == "muon"
    # The table is coarse, and a machine's speed changes.
    is_slow = not is_muon or settings.train.lr <= _TOO_FAST * learning_rate(width, lenient)
    if settings.model.dropout >= lenient.dropout and is_slow:
        return None
    advice = f"--dropout {suitable.dropout:g} --set train.weight_decay={suitable.weight_decay:g}"
    if is_muon:
        advice += f" --lr {learning_rate(width, suitable):g}"
    if suitable.bpe_dropout:
        advice += f" --set train.bpe_dropout={suitable.bpe_dropout:g}"
    return (
        f"this run makes {describe_passes(passes)} of {format_count(train_tokens)} tokens: beyond "
        f"{MOST_PASSES:.0f} passes it learns less and less, and it may overfit. More text would help, "
        f"or {advice}"
    )
