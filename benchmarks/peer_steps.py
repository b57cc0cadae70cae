"""Training steps of other programs, from clones, started by ``benchmarks/peers.py``.

    python benchmarks/peer_steps.py llm-trainer CLONE train.bin VOCAB_SIZE STEPS FOLDER
    python benchmarks/peer_steps.py nanochat CLONE train.bin VOCAB_SIZE STEPS [eager]

Prints the moments at which its updates ended as a JSON list of seconds. Nothing of cpulm is imported, so that
the memory of this process is the other program's own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

WIDTH, LAYERS, HEAD_WIDTH, BLOCK_SIZE, ROWS = 256, 4, 64, 256, 8
"""nanochat's depth 4 at its aspect ratio of 64, with the head width of its runcpu.sh."""


class Rows:
    """A token file in rows, each built on access, like a packed Hugging Face data set."""

    def __init__(self, file: Path, block_size: int) -> None:
        tokens = np.memmap(file, dtype=np.uint16, mode="r")
        self._rows = tokens[: len(tokens) // block_size * block_size].reshape(-1, block_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self._rows[index].tolist()}


def stand_in(name: str, **attributes: object) -> None:
    """An empty module in place of a package that is imported but not used."""
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(attributes)
        sys.modules[name] = module


def known(cls: type, settings: dict[str, Any]) -> dict[str, Any]:
    """The ``settings`` that its settings class has; its files contain others too."""
    return {name: value for name, value in settings.items() if name in cls.__dataclass_fields__}  # type: ignore[attr-defined]


def llm_trainer(clone: Path, file: Path, vocab_size: int, steps: int, folder: Path) -> list[float]:
    """Its ``Trainer.train()`` with its configs/cpu_small_model.yaml, for a number of updates."""
    import yaml

    sys.path.insert(0, str(clone / "src"))
    stand_in("datasets", load_dataset=None, Dataset=dict)
    config = importlib.import_module("llm_trainer.config")
    data = importlib.import_module("llm_trainer.data")
    given = yaml.safe_load((clone / "configs" / "cpu_small_model.yaml").read_text(encoding="utf-8"))
    model_config = config.ModelConfig(
        **known(config.ModelConfig, given["model"] | {"vocab_size": vocab_size})
    )
    training = given["training"] | {"device": "cpu", "max_steps": steps, "checkpoint_dir": str(folder)}
    # Its data set except for the access to rows: there is no padding, so no padding token.
    dataset = data.LanguageModelingDataset.__new__(data.LanguageModelingDataset)
    dataset.dataset = Rows(file, model_config.max_seq_len)
    dataset.tokenizer = types.SimpleNamespace(pad_token_id=-1)
    dataset.formatting_func = None
    trainer = importlib.import_module("llm_trainer.training").Trainer(
        model=importlib.import_module("llm_trainer.models").TransformerLM(model_config),
        tokenizer=dataset.tokenizer,
        config=config.TrainingConfig(**known(config.TrainingConfig, training)),
        train_dataset=dataset,
    )
    ends = noting_ends(trainer, "_optimizer_step")
    trainer.train()
    return ends


def noting_ends(owner: object, method: str) -> list[float]:
    """The times at which calls of that method ended."""
    ends: list[float] = []
    called: Callable[[], object] = getattr(owner, method)

    def noted() -> object:
        result = called()
        ends.append(time.perf_counter())
        return result

    setattr(owner, method, noted)
    return ends


def nanochat_model(vocab_size: int) -> Any:
    """Its model in the shape above, initialised; its clone is on Python's path."""
    import torch

    gpt = importlib.import_module("nanochat.gpt")
    heads = WIDTH // HEAD_WIDTH
    config = gpt.GPTConfig(BLOCK_SIZE, vocab_size, LAYERS, heads, heads, WIDTH, window_pattern="L")
    with torch.device("meta"):
        built = gpt.GPT(config)
    built.to_empty(device="cpu")
    built.init_weights()
    return built


def random_rows(tokens: npt.NDArray[np.uint16], generator: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Inputs and targets [ROWS, BLOCK_SIZE] from anywhere in ``tokens``."""
    import torch

    starts = generator.integers(0, len(tokens) - BLOCK_SIZE, ROWS)
    rows = torch.from_numpy(np.stack([tokens[i : i + BLOCK_SIZE + 1] for i in starts]).astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def collector_at_rest() -> None:
    """Disable garbage collection after the first update, as its base_train.py does."""
    gc.collect()
    gc.freeze()
    gc.disable()


def nanochat(clone: Path, file: Path, vocab_size: int, steps: int, eager: bool) -> list[float]:
    """Its model and its optimizer, stepped as its scripts/base_train.py does, for a number of updates."""
    if eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # before torch: its optimizer's functions are compiled too
    sys.path.insert(0, str(clone))
    import torch

    built = nanochat_model(vocab_size)
    model = built if eager else torch.compile(built, dynamic=False)
    optimizer = built.setup_optimizer()
    generator = np.random.default_rng(0)
    tokens = np.memmap(file, dtype=np.uint16, mode="r")
    ends = []
    for step in range(steps):
        inputs, targets = random_rows(tokens, generator)
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
        built.zero_grad(set_to_none=True)
        loss.item()
        ends.append(time.perf_counter())
        if step == 0:
            collector_at_rest()
    return ends


def main() -> None:
    which, clone, file, vocab_size, steps, *rest = sys.argv[1:]
    common = (Path(clone), Path(file), int(vocab_size), int(steps))
    with contextlib.redirect_stdout(sys.stderr):
        ends = nanochat(*common, bool(rest)) if which == "nanochat" else llm_trainer(*common, Path(rest[0]))
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
