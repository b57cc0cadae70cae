"""The states of a run, and what each means in words."""

from __future__ import annotations

from typing import Literal

from cpulm.events import EndReason

RunState = Literal[
    "running",
    "restarting",
    "finished",
    "stopped",
    "aborted",
    "diverged",
    "out of room",
    "failed",
    "crashed",
    "new",
]

RUN_STATES: dict[RunState, str] = {
    "running": "it is being trained",
    "restarting": "its supervisor is about to start it again",
    "finished": "it has finished",
    "stopped": "it was stopped, with everything saved",
    "aborted": "it was aborted by a second Ctrl-C, at its last checkpoint",
    "diverged": "training diverged",
    "out of room": "there was not enough disk space or memory",
    "failed": "it ended with an error",
    "crashed": "its process ended unexpectedly",
    "new": "it has not trained a step",
}
"""All states, each as a sentence about the run."""

END_STATES: dict[EndReason, RunState] = {
    "horizon": "finished",
    "target_loss": "finished",
    "patience": "finished",
    "stopped": "stopped",
    "aborted": "aborted",
    "diverged": "diverged",
    "no_room": "out of room",
    "failed": "failed",
}
"""The state of a run that has ended, by the reason of :class:`cpulm.events.RunFinished`."""
