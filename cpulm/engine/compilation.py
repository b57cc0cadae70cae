"""The step compiled before the first update, or a plain step where that fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpulm.data.loader import Loader
from cpulm.engine.randomness import random_states, restore_random_states
from cpulm.engine.runtime import Runtime
from cpulm.engine.stop import StopRequest
from cpulm.events import Listener, Progress
from cpulm.model.transformer import Transformer

Forward = Callable[..., Tensor]


def ready_forward(
    model: Transformer, loader: Loader, runtime: Runtime, show: Listener, stop: StopRequest
) -> tuple[Forward, Runtime]:
    """What computes the training loss, compiled where ``runtime`` says so and it works.

    One forward and one backward pass are run to compile them; gradients and random state are left as they
    were. A compiler that fails (a folder name it cannot read, a missing header) costs the speed, not the
    run.

    Raises:
        StopNow: where a stop is asked for meanwhile: a compiler does not look at requests.

    Returns:
        A function of (idx, targets=...), and the runtime with what came true.
    """
    if not runtime.compiled:
        return model, runtime
    forward: Forward = torch.compile(model)
    random_state = random_states(runtime.device)
    show(Progress(stage="compiling", done=0, total=None, unit=""))
    try:
        x, y = (part.to(runtime.device) for part in loader.batch(0))
        with stop.at_once():
            with runtime.autocast():
                loss = forward(x, targets=y)
            loss.backward()
    except Exception as error:  # torch wraps what compilers and linkers say in many classes
        torch._dynamo.reset()
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return model, runtime.noting(
            f"eager after all, compiling failed: {why.strip()[:200]}", compiled=False
        )
    finally:
        model.zero_grad(set_to_none=True)
        restore_random_states(random_state)
        show(Progress(stage="compiling", done=1, total=1, unit="", finished=True))
    return forward, runtime
