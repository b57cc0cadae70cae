"""cpulm: train small language models from scratch on the computer you already have.

From Python: :func:`load` a trained model, and :func:`train` one. Either loads torch when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpulm.api.language_model import Model, load
    from cpulm.api.training_run import TrainedRun, train

__version__ = "0.1.0"
__all__ = ["Model", "TrainedRun", "load", "train"]


if not TYPE_CHECKING:  # to a type checker, a module with this function has every name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cpulm.api import language_model, training_run

        found = getattr(language_model if name in ("Model", "load") else training_run, name)
        globals()[name] = found
        return found
