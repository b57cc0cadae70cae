"""The settings of low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from cpulm.settings.setting_types import LARGEST_FIGURE, WIDEST, Section, as_list

Projection = Literal["q", "k", "v", "out", "gate", "up", "down"]


class LoraSettings(Section):
    """Low-rank adapters (LoRA), which a run with `train.init_from` can train instead of all weights."""

    rank: int = Field(0, ge=0, le=WIDEST)
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: float = Field(16.0, gt=0, le=LARGEST_FIGURE)
    """What the adapters add is multiplied by `alpha / rank`."""
    projections: Annotated[list[Projection], BeforeValidator(as_list)] = Field([])
    """The linear layers with adapters, such as `[q, v]`, of `q`, `k`, `v`, `out`, `gate`, `up` and `down`;
    empty: all."""

    def adapts(self, projection: str) -> bool:
        """Whether a projection of a block has an adapter."""
        return not self.projections or projection in self.projections

    @property
    def scale(self) -> float:
        """What the products of the adapters' matrices are multiplied by."""
        return self.alpha / self.rank
