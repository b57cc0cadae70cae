"""The adapters of a run's best model, beside its checkpoints, as PEFT loads them."""

from __future__ import annotations

from cpulm.atomic import replacing_folder
from cpulm.checkpoints.train_state import TrainState
from cpulm.errors import ResourceError, SettingsError
from cpulm.events import Listener, Notice
from cpulm.execution.update import TrainingParts
from cpulm.pretrained.peft_adapter import write_adapter
from cpulm.run_dir import RunDir
from cpulm.settings import Settings


def save_adapters(
    settings: Settings, parts: TrainingParts, state: TrainState, run: RunDir, emit: Listener
) -> None:
    """Write the run's adapters of the better of weights and average; a failure is a warning.

    A block that no other program has is left out: its adapters are in the checkpoint alone.
    """
    averaged = parts.average if state.average_is_better else None
    weights = parts.model.state_dict() if averaged is None else averaged.state_dict()
    try:
        with replacing_folder(run.adapter) as folder:
            write_adapter(weights, settings.model, settings.lora, settings.train.init_from or "", folder)
    except SettingsError:
        return
    except (OSError, ResourceError) as error:
        emit(Notice(level="warning", message=f"{run.adapter} could not be written: {error}"))
