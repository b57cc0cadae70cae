"""All settings of a run, with their defaults, meanings and limits.

:mod:`cpulm.settings_resolver` takes their values from presets, files, the environment and flags.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from cpulm.distributed_settings import DistributedSettings
from cpulm.layer_shapes import ACTIVATIONS, Activation, BlockLayers, LinearShape, Part
from cpulm.lora_settings import LoraSettings
from cpulm.record_settings import CheckpointSettings, EvalSettings, LogSettings, SampleSettings
from cpulm.setting_types import (
    LARGEST,
    LARGEST_FIGURE,
    LARGEST_VOCABULARY,
    WIDEST,
    Moment,
    Seconds,
    Section,
    Sources,
    WeightOfText,
)
from cpulm.yaml_file import to_yaml

TokenizerKind = Literal["bpe", "byte", "char", "word"]
Device = Literal["auto", "cpu", "cuda", "mps"]

_PATIENCE = 10
_DEEPEST = 10_000
"""The most layers: far beyond what a machine holds."""
_LARGEST_BATCH = 1 << 20
"""The most sequences in a micro-batch, and the most micro-batches in an update, whose numbers are listed."""
_FASTEST = 100.0
"""The largest learning rate: AdamW moves a weight by about as much in an update."""


class ModelSettings(Section):
    """The shape and the parts of the transformer. The defaults are the Qwen3 block."""

    n_layer: int = Field(6, ge=1, le=_DEEPEST)
    """Number of transformer blocks."""
    n_head: int = Field(6, ge=1, le=WIDEST)
    """Number of query heads."""
    n_kv_head: int | None = Field(None, ge=1, le=WIDEST)
    """Number of key and value heads (grouped-query attention); unset: `n_head`."""
    n_embd: int = Field(384, ge=1, le=WIDEST)
    """Width of the residual stream."""
    head_dim: int | None = Field(None, ge=1, le=WIDEST)
    """Width of one head; unset: `n_embd / n_head`."""
    n_inner: int | None = Field(None, ge=1, le=WIDEST)
    """Width of the MLP's hidden layer; unset: 8/3 of `n_embd` (to a multiple of 32) for `swiglu`, else 4
    times."""
    block_size: int = Field(256, ge=2, le=WIDEST)
    """Tokens in one sequence: the context."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalization before attention, MLP and head."""
    norm_eps: float = Field(1e-6, gt=0, le=1)
    """Added to the variance inside every norm."""
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """How positions are encoded."""
    rope_theta: float = Field(10_000.0, gt=0, le=1e12)
    """Base of the rotary frequencies."""
    mlp: Activation = "swiglu"
    """The MLP's activation: `swiglu`, `gelu` (GPT-2's tanh form), `gelu_erf` (the exact one, three times
    faster on a CPU), `relu` or `relu2` (relu squared). llama.cpp loads no block with the last two,
    transformers only the GPT-2 block."""
    qk_norm: bool = True
    """RMSNorm over each head's queries and keys, as in Qwen3."""
    bias: bool = False
    """Biases in linear layers and in layer norms."""
    tie_embeddings: bool = True
    """Use the embedding matrix as the output head too."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on embeddings, attention and residual branches."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelSettings:
        if self.head_dim is None and self.n_embd % self.n_head:
            low = self.n_embd // self.n_head * self.n_head
            fits = " and ".join(str(width) for width in (low, low + self.n_head) if width)
            raise ValueError(f"n_embd ({self.n_embd}) is not divisible by n_head ({self.n_head}): try {fits}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head ({self.n_head}) is not divisible by n_kv_head ({self.n_kv_head})")
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(f"rope needs an even head width, not {self.head_width}")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        if self.n_inner is not None:
            return self.n_inner
        if ACTIVATIONS[self.mlp].gated:
            return (8 * self.n_embd // 3 + 31) // 32 * 32
        return 4 * self.n_embd

    @property
    def linear_layers(self) -> BlockLayers:
        """The shapes of a block's linear layers, for all that build, count or measure them."""
        d, inner, head = self.n_embd, self.inner_width, self.head_width
        q, kv = self.n_head * head, self.kv_heads * head
        gate = (Part("gate", inner),) if ACTIVATIONS[self.mlp].gated else ()
        up = (1 + len(gate)) * inner
        return BlockLayers(
            qkv=LinearShape(d, q + 2 * kv, head, (Part("q", q), Part("k", kv), Part("v", kv))),
            out=LinearShape(q, d, d, (Part("out", d),)),
            up=LinearShape(d, up, inner, (*gate, Part("up", inner))),
            down=LinearShape(inner, d, d, (Part("down", d),)),
        )


class DataSettings(Section):
    """The training and validation text."""

    source: Sources = Field(["builtin:python"], min_length=1)
    """Files, folders, globs, datasets (`hf:NAME:SPLIT`), one prepared token folder, or `builtin:python`."""
    val_source: Sources = Field([])
    """A separate validation text; if empty, a part of `source` is held out."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """The part that is held out."""
    tokenizer: str = "bpe"
    """`bpe` (byte-level), `byte`, `char`, `word`, the path of a `tokenizer.json` or of a `.txt` file of
    words."""
    vocab_size: int | None = Field(4096, ge=2, le=LARGEST_VOCABULARY)
    """Entries of the vocabulary of `bpe` and `word`; unset: as many as the tokenizer has."""
    format: str = "auto"
    """`text`, `csv`, `tsv`, `jsonl`, `json`, `parquet`, `arrow`, `html`, `markdown` or `epub`; `auto` goes by
    the suffixes."""
    document: Literal["file", "line", "paragraph"] = "file"
    """What one document is in plain text."""
    separator: str = ""
    """The text between documents of plain text, such as `<|endoftext|>`."""
    field: str = "text"
    """The column or field with the text of a row; `a.b` is a nested one."""
    template: str = ""
    """How columns make the text of a row, such as `{grade} {holds|list}`, instead of `field`."""
    loss_after: str = ""
    """A column of the template: only what follows its value counts in the loss."""
    chat: bool = False
    """Rows are conversations in OpenAI's or ShareGPT's form, and records: the model learns to answer."""
    where: Sources = Field([])
    """Conditions that a row must meet, such as `grade>=6`."""
    share: float = Field(1.0, gt=0, le=1)
    """About this part of `source` is used: documents, and pieces of about 64 K characters of long ones, by
    hashes of their names. For texts of which a run sees only a part."""
    weights: list[WeightOfText] = Field([])
    """How often an epoch has the text of each `source`, such as `[3, 0.2]`; empty: once."""
    dedup: bool = False
    """Leave out documents whose text was there before, and training text that is in the validation text."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: stop and name the place, or put U+FFFD there."""
    encoding: str = "utf-8"
    """The encoding of files that are not UTF-8, such as `cp1252`."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, instead of stopping at the first."""

    @model_validator(mode="after")
    def _one_weight_for_each_source(self) -> DataSettings:
        if self.weights and len(self.weights) != len(self.source):
            raise ValueError(f"{len(self.weights)} weights, but {len(self.source)} in source: one for each")
        return self

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, value: str) -> str:
        try:
            "text".encode(value)
        except (LookupError, ValueError):
            raise ValueError("must be the name of an encoding, such as cp1252, utf-16 or shift_jis") from None
        return value


class TrainSettings(Section):
    """How the model is trained. One of `steps`, `epochs`, `tokens`, `max_time`, `until` is the horizon."""

    steps: int | None = Field(None, ge=1, le=LARGEST)
    """Horizon in optimizer updates."""
    epochs: float | None = Field(None, gt=0, le=LARGEST_FIGURE)
    """Horizon in passes over the training split."""
    tokens: int | None = Field(None, ge=1, le=LARGEST)
    """Horizon in trained tokens."""
    max_time: Seconds | None = None
    """Horizon in training time (seconds, or `8h`, `90min`)."""
    until: Moment | None = None
    """Horizon as a moment, such as `2026-05-01T07:00:00+02:00`."""
    target_loss: float | None = Field(None, gt=0, le=LARGEST_FIGURE)
    """End at this validation loss (nats per token)."""
    patience: int | None = Field(None, ge=0, le=LARGEST)
    """End after this many validations in a row without a new best loss; 0: never; unset: 10 if the horizon is
    a time, else never."""
    micro_batch_size: int = Field(16, ge=1, le=_LARGEST_BATCH)
    """Sequences in one forward and backward pass."""
    grad_accum_steps: int = Field(1, ge=1, le=_LARGEST_BATCH)
    """Micro-batches in one optimizer update."""
    document_mask: bool = False
    """A token attends only to its own document, and positions start from 0 in each. Without it a document
    sees the end of the one before."""
    records: bool = False
    """Windows hold whole documents, as many as fit, with `document_mask`: for rows, names and other short
    texts."""
    seed: int = Field(1337, ge=0, le=2**32 - 1)
    """Seeds initial weights, data order and dropout."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` for the blocks' matrices and AdamW for the rest, or `adamw` for all."""
    lr: float = Field(3e-3, gt=0, le=_FASTEST)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.02, gt=0, le=_FASTEST)
    """Peak learning rate of Muon."""
    generations: int = Field(1, ge=1, le=1000)
    """Trainings in the run that share its horizon. Each begins with new weights and learns from the text and
    from the best model so far."""
    init_from: str | None = None
    """A trained model to begin with: a run, a checkpoint, a folder of transformers or a GGUF file."""
    teacher: str | None = None
    """A model with the same tokenizer that teaches this one (distillation): a run, a checkpoint, a folder of
    transformers or a GGUF file."""
    teacher_weight: float = Field(0.3, gt=0, le=1)
    """The part of the loss that is the divergence from the teacher; the rest is that on the text."""
    teacher_temperature: float = Field(2.0, gt=0, le=LARGEST_FIGURE)
    """Divides the logits of both models in the divergence."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "wsd"
    """Shape of the learning rate over the run; `wsd` is warm-up, stable, linear decay."""
    warmup_steps: int = Field(50, ge=0, le=LARGEST)
    """Updates over which the learning rate rises; at most a tenth of a horizon in steps."""
    decay_fraction: float = Field(0.5, gt=0, le=1)
    """The last part of the run over which `wsd` decays."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The learning rate at the end, as a part of the peak."""
    weight_decay: float = Field(0.1, ge=0, le=LARGEST_FIGURE)
    """Decoupled weight decay on matrices; never on norms and biases."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's second moment."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's Nesterov momentum."""
    outer_steps: int = Field(0, ge=0, le=LARGEST)
    """Updates in a round of the outer step (DiLoCo): after each round the weights take a step with Nesterov
    momentum from where the round began, in the direction that it went; 0: no outer step."""
    outer_lr: float = Field(0.7, gt=0, le=_FASTEST)
    """Learning rate of the outer step, as a multiple of the way that a round went; it stays constant."""
    outer_momentum: float = Field(0.6, ge=0, lt=1)
    """Nesterov momentum of the outer step."""
    average_fraction: float | None = Field(None, gt=0, le=1)
    """Average the weights over about this part of the updates so far, such as 0.1. Each validation measures
    both, and `best.pt` has the better; unset: no average."""
    grad_clip: float = Field(1.0, ge=0, le=LARGEST_FIGURE)
    """Largest norm of the whole gradient; 0 does not clip."""
    spike_nats: float | None = Field(1.0, gt=0, le=LARGEST_FIGURE)
    """A loss this far above its running mean for five updates is a spike; unset: no spikes."""
    max_rollbacks: int = Field(3, ge=0, le=LARGEST)
    """After a spike, or a loss or gradient that is not finite, go back to the last good checkpoint and skip
    that data; at most this many times without a new best loss, then stop."""

    @property
    def masks_documents(self) -> bool:
        """Whether documents in one window do not see each other."""
        return self.document_mask or self.records

    @property
    def has_teacher(self) -> bool:
        """Whether a model teaches another one in the run."""
        return self.teacher is not None or self.generations > 1

    @property
    def validated_models(self) -> int:
        """How many models each validation measures: that of the weights, and that of their average."""
        return 1 if self.average_fraction is None else 2

    @property
    def stale_validations(self) -> int | None:
        """Validations in a row without a new best loss that end the run; None: none do."""
        if self.patience is not None:
            return self.patience or None
        return _PATIENCE if self.max_time is not None or self.until is not None else None


class RuntimeSettings(Section):
    """How the machine is used."""

    device: Device = "auto"
    """`auto` takes cuda, then mps, then cpu."""
    threads: int | None = Field(None, ge=1, le=LARGEST)
    """CPU threads; unset: OMP_NUM_THREADS, else one for each physical core that this process may use, without
    slow cores that would hold up the fast ones."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Precision of the matrix products; `auto` takes the fastest that the device has instructions for. With
    int8 the rows and columns of linear layers, head and Muon are rounded to 8 bits; weights, sums, attention
    and validation stay in fp32."""
    kernels: Literal["auto", "off"] = "auto"
    """Compiled kernels: the wheel's, or compiled once if there is a C++ compiler."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` uses it for a long run if neither int8 nor the kernels, which are faster, are
    used."""
    nice: bool = False
    """Give this process a low priority."""
    allow_sleep: bool = False
    """Let the machine go to sleep while it trains."""
    pause_on_battery: bool = False
    """Wait while the machine runs on battery, and continue on mains."""


class Settings(Section):
    """All settings of one run."""

    preset: str = Field("", max_length=255)
    """The preset that these settings are based on; a label without effect."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    lora: LoraSettings = LoraSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    sample: SampleSettings = SampleSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    distributed: DistributedSettings = DistributedSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _one_horizon(self) -> Settings:
        given = [name for name in HORIZONS if getattr(self.train, name) is not None]
        if len(given) > 1:
            raise ValueError(f"train has {len(given)} horizons ({', '.join(given)}); keep one")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Settings:
        if not self.lora.rank:
            return self
        if self.train.init_from is None:
            raise ValueError(
                f"lora.rank = {self.lora.rank} needs a model to begin with: give --init-from MODEL"
            )
        there = {part.name for layer in self.model.linear_layers for part in layer.parts}
        missing = [name for name in self.lora.projections if name not in there]
        if missing:
            raise ValueError(f"lora.projections has {missing[0]}, and a block of this model has none")
        return self

    @model_validator(mode="after")
    def _rounds_of_updates(self) -> Settings:
        if self.distributed.mode == "diloco" and not self.train.outer_steps:
            raise ValueError(
                "distributed.mode diloco exchanges weights after train.outer_steps updates, and these are 0: "
                "set train.outer_steps, such as 30"
            )
        if self.distributed.mode == "diloco" and self.train.average_fraction is not None:
            raise ValueError(
                "train.average_fraction averages the weights of every update, which differ between the "
                "processes of distributed.mode diloco: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _countable_step(self) -> Settings:
        if self.tokens_per_step > LARGEST:
            raise ValueError(
                f"one update is {self.tokens_per_step:,} tokens (train.micro_batch_size x "
                f"train.grad_accum_steps x model.block_size); at most {LARGEST:,} can be counted"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained by one optimizer update."""
        return self.train.micro_batch_size * self.train.grad_accum_steps * self.model.block_size


HORIZONS = ("steps", "epochs", "tokens", "max_time", "until")

_S = TypeVar("_S", bound=Section)


def changed(section: _S, **values: Any) -> _S:
    """Return a copy of ``section`` with other ``values``, validated again.

    Raises:
        pydantic.ValidationError: if a value, or the combination, is invalid.
    """
    return type(section).model_validate({**section.model_dump(), **values})


def settings_yaml(settings: Settings) -> str:
    """Convert the settings to YAML from which ``--config`` reads the same settings."""
    return to_yaml(settings.model_dump(mode="json"))
