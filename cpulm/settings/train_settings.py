"""The settings of the training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cpulm.settings.setting_types import LARGEST, LARGEST_FIGURE, Moment, Seconds, Section

HORIZONS = ("steps", "epochs", "tokens", "max_time", "until")
"""The settings of which one is the horizon."""

_PATIENCE = 10
_LARGEST_BATCH = 1 << 20
"""The most sequences in a micro-batch, and the most micro-batches in an update, whose numbers are listed."""
_FASTEST = 100.0
"""The largest learning rate: AdamW moves a weight by about as much in an update."""


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
    max_passes: float | None = Field(None, gt=0, le=LARGEST_FIGURE)
    """With a horizon in time: end each generation after this many passes over the training split, if the time
    does not end it before."""
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
    outer_lr: float | None = Field(None, gt=0, le=_FASTEST)
    """Learning rate of the outer step, as a multiple of the way that a round went; it stays constant. Unset:
    1 with `distributed.mode: diloco`, the average of the processes; else 0.7."""
    outer_momentum: float | None = Field(None, ge=0, lt=1)
    """Nesterov momentum of the outer step; unset: 0 with `distributed.mode: diloco`, else 0.6."""
    bpe_dropout: float = Field(0.0, ge=0, lt=1)
    """In half of the rows, the probability that a token is split into the two that it was merged of, and each
    of these again: a small text differs from pass to pass. For `bpe`, without `train.records`."""
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
    def ends_in_time(self) -> bool:
        """Whether the horizon is a time."""
        return self.max_time is not None or self.until is not None

    @property
    def stale_validations(self) -> int | None:
        """Validations in a row without a new best loss that end the run; None: none do."""
        if self.patience is not None:
            return self.patience or None
        return _PATIENCE if self.ends_in_time else None
