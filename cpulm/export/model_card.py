"""The model card: what a model is, how it was trained, and what was measured."""

from __future__ import annotations

from pathlib import PurePath

from cpulm.data.encoder import keeps_every_text
from cpulm.errors import SettingsError
from cpulm.export.trained_model import TrainedModel
from cpulm.model.counts import count
from cpulm.pretrained.architecture import TITLES, architecture_of
from cpulm.settings import ModelSettings
from cpulm.units import format_count, format_duration

_LIMITS = {
    "char": "It knows only the characters of its training text; transformers drops others without a word.",
    "word": "It knows only the most frequent words of its training text; all others become `<unk>`, and line "
    "ends and runs of spaces become one space.",
}


_WRITES = """print(write("Once", max_new_tokens=100)[0]["generated_text"])
```

It only continues text: it was not trained to answer questions or to follow instructions."""
_TALKS = """talk = [{"role": "user", "content": "Hello"}]
print(write(talk, max_new_tokens=100)[0]["generated_text"][-1]["content"])
```

It was trained to answer in conversations; what it says may be wrong."""


def card_facts(trained: TrainedModel) -> list[tuple[str, str]]:
    """What was measured, as pairs of a name and a value."""
    checkpoint, settings = trained.checkpoint, trained.checkpoint.settings
    state, runtime = checkpoint.state, checkpoint.runtime
    params = count(settings.model, checkpoint.vocab_size)
    facts = [
        (
            "Parameters",
            f"{format_count(params.total)}, {format_count(params.non_embedding)} without embeddings",
        ),
        ("Block", f"{_block(settings.model)}, {_shape(settings.model)}"),
        ("Vocabulary", f"{checkpoint.vocab_size:,} tokens, {trained.tokenizer.kind}"),
        ("Context", f"{settings.model.block_size:,} tokens"),
    ]
    if settings.train.init_from is not None:
        facts.append(("Begun with", _public(settings.train.init_from)))
    if state.step:
        facts += [
            ("Training text", ", ".join(_public(source) for source in settings.data.source)),
            ("Trained on", f"{format_count(state.tokens)} tokens in {state.step:,} steps"),
        ]
    if state.best_loss is not None:
        facts.append(("Validation loss", _loss(trained)))
    if state.elapsed_seconds:
        precision = str(runtime.get("precision") or "fp32")
        facts.append(("Training time", f"{format_duration(state.elapsed_seconds)} in {precision}"))
    if runtime.get("device_name"):
        facts.append(("Machine", f"{runtime['device_name']}, {_threads(int(runtime['threads']))}"))
    return facts


def model_card(trained: TrainedModel) -> str:
    """Return the README of a folder for transformers, Markdown with the Hub's front matter."""
    rows = "\n".join(
        f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in card_facts(trained)
    )
    limit = _LIMITS.get(trained.tokenizer.kind, "")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- cpulm
---

# {trained.name}

{_origin(trained)}

| | |
|---|---|
{rows}

The loss is in nats per token, on text that was held out from training. {limit}

## How to use it

```python
from transformers import pipeline

write = pipeline("text-generation", ".")  # this folder, or its name on the Hub
{_TALKS if trained.talks else _WRITES}
"""


def _origin(trained: TrainedModel) -> str:
    checkpoint = trained.checkpoint
    if not checkpoint.step:
        return "A language model of another program, converted with cpulm."
    scratch = "" if checkpoint.settings.train.init_from else " from scratch"
    return f"A small language model, trained{scratch} with cpulm."


def _block(model: ModelSettings) -> str:
    try:
        return TITLES[architecture_of(model)]
    except SettingsError:
        return f"{model.norm}, {model.position}, {model.mlp}"


def _shape(model: ModelSettings) -> str:
    heads = f"{model.n_head} heads"
    if model.kv_heads != model.n_head:
        heads = f"{model.n_head} query heads, {model.kv_heads} key-value heads"
    return f"{model.n_layer} layers, {heads}, width {model.n_embd}"


def _loss(trained: TrainedModel) -> str:
    state = trained.checkpoint.state
    text = f"{state.best_loss:.4f}"
    if state.best_bits_per_byte is not None and keeps_every_text(trained.tokenizer):
        text += f", {state.best_bits_per_byte:.4f} bits per byte"
    if state.best_step not in (None, state.step):
        text += f" (the lowest of the run, at step {state.best_step:,})"
    return text


def _public(source: str) -> str:
    """The last part of a path: where it lies on a computer is nobody's business."""
    return source if ":" in source[2:] else PurePath(source).name or source


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
