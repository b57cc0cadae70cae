"""Estimates the peak memory of a training process from its settings. Loads no torch.

The memory in use is counted at the four points of an update at which it may peak: in the head, when all
blocks have saved the activations for their backward passes; in the first and in the last block of the
backward pass; and in the optimizers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpulm.layer_shapes import ACTIVATIONS, LinearShape
from cpulm.model.counts import (
    FEWEST_ROWS_IN_CHUNK,
    INT8_LOGITS_IN_CHUNK,
    INT8_PROBABILITIES_AT_ONCE,
    LOGITS_IN_CHUNK,
    count,
    count_adapters,
)
from cpulm.optim.batch_size import MUON_ELEMENTS_AT_ONCE
from cpulm.settings import ModelSettings, Settings
from cpulm.system.machine import Machine, choose
from cpulm.system.precisions import cpu_precision

if TYPE_CHECKING:
    from cpulm.execution.runtime import Runtime

FLOAT_BYTES = 4

PROCESS_BYTES = 330 << 20
"""Resident size of a process after torch's first update of a tiny model: its code, and the workspaces into
which matrix products pack their operands (Linux, torch 2.13)."""

HEAP_FRAGMENTATION = 1.3
"""Resident bytes per byte in use: allocations of different sizes fragment the C library's heap. Measured with
glibc on the shapes of ``benchmarks/memory.py`` that are not presets; the presets validate it."""


@dataclass(frozen=True)
class Arithmetic:
    """The properties of the computation that its memory depends on.

    Attributes:
        int8: whether the linear layers' products are in int8; with kernels the head's products are, too.
        lanes: float32 numbers in a vector of the compiled kernels, which need widths that are multiples of
            it; 0 without kernels.
    """

    int8: bool = False
    lanes: int = 0

    def has_kernels_for(self, *widths: int) -> bool:
        """Whether the compiled kernels support all of these widths."""
        return self.lanes > 0 and all(width % self.lanes == 0 for width in widths)

    def quantizes(self, layer: LinearShape) -> bool:
        """Whether a linear layer of this shape is computed in int8."""
        return self.int8 and (self.lanes == 0 or self.has_kernels_for(layer.inputs, layer.outputs))


def arithmetic_of(runtime: Runtime) -> Arithmetic:
    """Return the arithmetic of ``runtime``."""
    lanes = 0 if runtime.kernels is None or runtime.precision == "bf16" else runtime.kernels.lanes
    return Arithmetic(int8=runtime.precision == "int8", lanes=lanes)


def expected_arithmetic(settings: Settings, machine: Machine) -> Arithmetic:
    """Return the arithmetic of a run with ``settings`` on ``machine``, if the kernels can be compiled."""
    runtime = settings.runtime
    device = choose(machine).device.value if runtime.device == "auto" else runtime.device
    if device != "cpu":
        return Arithmetic()
    kernels = runtime.kernels == "auto" and machine.has_kernels
    precision: str = runtime.precision
    if precision == "auto":
        precision, _ = cpu_precision(machine.instruction_sets, kernels=kernels, model=settings.model)
    lanes = vector_lanes(machine.instruction_sets) if kernels and precision != "bf16" else 0
    return Arithmetic(int8=precision == "int8", lanes=lanes)


def vector_lanes(instruction_sets: Collection[str]) -> int:
    """Return the float32 numbers per vector in kernels compiled for a CPU with these instruction sets."""
    if any(name.startswith(("AVX512", "AVX-512")) for name in instruction_sets):
        return 16
    return 8 if any(name.startswith("AVX") for name in instruction_sets) else 4


def memory_bytes(
    settings: Settings, vocab_size: int, arithmetic: Arithmetic, teacher: ModelSettings | None = None
) -> int:
    """Estimate the peak resident memory of the training process.

    Args:
        teacher: the shape of the model that teaches, if one does.
    """
    used = training_bytes(settings, vocab_size, arithmetic, teacher)
    return PROCESS_BYTES + round(HEAP_FRAGMENTATION * used)


def training_bytes(
    settings: Settings, vocab_size: int, arithmetic: Arithmetic, teacher: ModelSettings | None = None
) -> int:
    """Count the most bytes in use at once: weights, gradients, optimizer state and activations.

    Args:
        teacher: as in :func:`memory_bytes`.
    """
    model, train, frozen = settings.model, settings.train, settings.lora.rank > 0
    counts, adapters = count(model, vocab_size), count_adapters(model, settings.lora)
    weights, trained = counts.total + adapters, adapters if frozen else counts.total
    matrices = counts.by_part["attention"] + counts.by_part["mlp"]
    moments = 2 * trained - (matrices if train.optimizer == "muon" else 0)
    if train.outer_steps:
        moments += 2 * trained  # the weights at the start of the round, and the velocity
    low_traffic = settings.distributed.mode == "diloco"
    if low_traffic:
        moments += trained  # what a process has still to send
    tokens = train.micro_batch_size * model.block_size
    # With several micro-batches the gradients exist during all forward and backward passes but the first.
    accumulated = trained if train.grad_accum_steps > 1 else 0
    averaged = 0 if train.average_fraction is None else weights
    permanent = FLOAT_BYTES * (weights + accumulated + averaged + moments)
    gradients = FLOAT_BYTES * trained
    update = gradients + (_muon_bytes(model, arithmetic) if train.optimizer == "muon" else 0)
    if train.grad_accum_steps > 1:
        update -= gradients
    if low_traffic:  # differences, what is to be sent, its rounding, and the bytes of both ways
        update = max(update, 5 * FLOAT_BYTES * trained)
    accumulates = train.grad_accum_steps > 1
    passes = _forward_backward_bytes(model, vocab_size, tokens, arithmetic, accumulates, teacher, frozen)
    passes += tokens * _adapter_bytes(settings, arithmetic)
    if teacher is not None:
        permanent += _teacher_weights_bytes(teacher, vocab_size, arithmetic)
    if train.masks_documents and not arithmetic.has_kernels_for(model.head_width):
        passes += FLOAT_BYTES * tokens * model.block_size  # the mask, one for all layers
    return permanent + max(update, passes)


def activation_bytes(model: ModelSettings, tokens: int, arithmetic: Arithmetic) -> int:
    """Return the bytes that the forward pass saves for the backward pass, up to the head."""
    stream = FLOAT_BYTES * tokens * model.n_embd
    kept = stream + tokens * (_norm_statistics(model) + _mask_bytes(model, arithmetic))
    if model.activation_checkpointing:
        return kept + model.n_layer * stream
    return kept + model.n_layer * _block_bytes(model, tokens, arithmetic)


def _forward_backward_bytes(
    model: ModelSettings,
    vocab_size: int,
    tokens: int,
    arithmetic: Arithmetic,
    accumulates: bool,
    teacher: ModelSettings | None,
    frozen: bool,
) -> int:
    """Return the peak that a forward and a backward pass add to weights and optimizer state: in the head, in
    the first block of the backward pass, or in its last one. Frozen weights have no gradients."""
    stream = FLOAT_BYTES * tokens * model.n_embd
    table = 0 if frozen else FLOAT_BYTES * vocab_size * model.n_embd
    kept = activation_bytes(model, tokens, arithmetic)
    block = _block_bytes(model, tokens, arithmetic)
    if model.activation_checkpointing:
        kept_by_block, recomputed = stream, block - stream  # the block's input is saved already
    else:
        kept_by_block, recomputed = block, 0
    counts = count(model, vocab_size)
    gradients = FLOAT_BYTES * (counts.by_part["attention"] + counts.by_part["mlp"]) // model.n_layer
    gradients = 0 if frozen else gradients
    head = kept + _head_bytes(model, vocab_size, tokens, arithmetic, accumulates, frozen)
    if teacher is not None:
        head += _teacher_head_bytes(model, teacher, vocab_size, tokens, arithmetic)
    inside = table + recomputed + gradients + _mlp_gradient_bytes(model, tokens, arithmetic)
    first = kept - stream + inside  # the last norm's input is freed by then
    last = first + (model.n_layer - 1) * (gradients - kept_by_block)
    embedding = 2 * table + model.n_layer * gradients + stream
    return max(head, first, last, embedding)


def _adapter_bytes(settings: Settings, arithmetic: Arithmetic) -> int:
    """Return the bytes per token that adapters save beside what the layers do.

    These are the products with A. A frozen layer in int8 saves no input, but its adapters save it in fp32;
    that of ``out``, the heads' outputs, is saved by attention.
    """
    lora, layers, saved = settings.lora, settings.model.linear_layers, 0
    for layer in layers if lora.rank else ():
        adapted = sum(lora.adapts(part.name) for part in layer.parts)
        saved += FLOAT_BYTES * adapted * lora.rank
        if arithmetic.quantizes(layer):
            saved += (FLOAT_BYTES * layer.inputs if adapted and layer is not layers.out else 0) - layer.inputs
    return settings.model.n_layer * saved


def _mask_bytes(model: ModelSettings, arithmetic: Arithmetic) -> int:
    """Return the bytes per token that dropout on the residual stream saves; the kernel saves only a seed."""
    return FLOAT_BYTES * model.n_embd if model.dropout and not arithmetic.has_kernels_for(model.n_embd) else 0


def _norm_statistics(model: ModelSettings) -> int:
    """Return the bytes per token that a norm of the residual stream saves beside its input."""
    return FLOAT_BYTES * (1 if model.norm == "rmsnorm" else 2)


def _block_bytes(model: ModelSettings, tokens: int, arithmetic: Arithmetic) -> int:
    """Return the bytes that one block saves for its backward pass."""
    norms = 2 * (FLOAT_BYTES * model.n_embd + _norm_statistics(model))
    masks = 2 * _mask_bytes(model, arithmetic)
    per_token = norms + masks + _attention_bytes(model, arithmetic) + _mlp_bytes(model, arithmetic)
    quantized = [layer for layer in model.linear_layers if arithmetic.quantizes(layer)]
    weights = sum(layer.inputs * layer.outputs for layer in quantized)  # a copy in int8
    return tokens * per_token + weights


def _attention_bytes(model: ModelSettings, arithmetic: Arithmetic) -> int:
    """Return the bytes per token that attention saves: layers' inputs, projection, heads' outputs."""
    layers = model.linear_layers
    d, q, projection = model.n_embd, layers.out.inputs, layers.qkv.outputs
    kv = (projection - q) // 2
    floats = projection + q + model.n_head  # the projection, the heads' outputs, the softmax denominators
    if not arithmetic.has_kernels_for(model.head_width):
        if model.position == "rope" or model.qk_norm:
            floats += q + kv  # a copy of queries and keys, rotated or normalized
        if model.qk_norm:
            floats += model.n_head + model.kv_heads
        if model.dropout:  # torch's plain attention: scaled queries and keys, weights, mask, product of both
            floats += 2 * q + 3 * model.n_head * model.block_size
    qkv_input = d if arithmetic.quantizes(layers.qkv) else FLOAT_BYTES * d
    out_input = q if arithmetic.quantizes(layers.out) else 0  # in fp32 the heads' outputs are counted above
    return FLOAT_BYTES * floats + qkv_input + out_input


def _mlp_bytes(model: ModelSettings, arithmetic: Arithmetic) -> int:
    """Return the bytes per token that the MLP saves: its layers' inputs, and the activation's input."""
    up = model.linear_layers.up
    up_input = up.inputs if arithmetic.quantizes(up) else FLOAT_BYTES * up.inputs
    return FLOAT_BYTES * up.outputs + up_input + _down_input_bytes(model, arithmetic)


def _down_input_bytes(model: ModelSettings, arithmetic: Arithmetic) -> int:
    """Return the bytes per token that the MLP's last layer saves, beside those of the activation function."""
    if arithmetic.quantizes(model.linear_layers.down):
        return model.inner_width
    return 0 if ACTIVATIONS[model.mlp].keeps_result else FLOAT_BYTES * model.inner_width


def _mlp_gradient_bytes(model: ModelSettings, tokens: int, arithmetic: Arithmetic) -> int:
    """Return the bytes of the gradients in the MLP (of the stream, of the activation's output and input),
    less the saved input of the last layer, which is freed. Torch computes some with temporary tensors."""
    stream = model.n_embd * (2 if model.dropout else 1)
    steps = 0 if arithmetic.has_kernels_for(model.inner_width) else ACTIVATIONS[model.mlp].temporaries
    inside = model.linear_layers.up.outputs + (1 + steps) * model.inner_width
    return tokens * (FLOAT_BYTES * (stream + inside) - _down_input_bytes(model, arithmetic))


def _head_bytes(
    model: ModelSettings,
    vocab_size: int,
    tokens: int,
    arithmetic: Arithmetic,
    accumulates: bool,
    frozen: bool,
) -> int:
    """Return the bytes of the head and its loss: the logits and their gradients, or, in fp32, the gradients
    of weights and inputs twice, before and after scaling.

    In int8, later micro-batches add to the existing gradient in place.
    """
    d, v = model.n_embd, vocab_size
    stream, weight = FLOAT_BYTES * tokens * d, FLOAT_BYTES * v * d
    table = 0 if frozen else weight
    if arithmetic.int8 and arithmetic.has_kernels_for(v, d):
        together = min(tokens, max(FEWEST_ROWS_IN_CHUNK, INT8_PROBABILITIES_AT_ONCE // v))
        rows = min(together, max(FEWEST_ROWS_IN_CHUNK, INT8_LOGITS_IN_CHUNK // v))
        # Logits, their probabilities, and those of the chunk before, which is freed after the next is made.
        chunk = (FLOAT_BYTES + (2 if together > rows else 1)) * rows * v
        gradient = 0 if accumulates and together == tokens else table
        return 2 * stream + gradient + weight // 2 + together * v + chunk
    if tokens * v > LOGITS_IN_CHUNK:
        rows = min(tokens, max(FEWEST_ROWS_IN_CHUNK, LOGITS_IN_CHUNK // v))
        working = stream + stream + table + 2 * FLOAT_BYTES * rows * v
    else:
        return stream + 3 * FLOAT_BYTES * tokens * v + table
    return max(working, 2 * (stream + table))


def _teacher_weights_bytes(teacher: ModelSettings, vocab_size: int, arithmetic: Arithmetic) -> int:
    """Return the bytes of a teacher's weights, which in int8 are kept quantized too."""
    quantized = [layer for layer in teacher.linear_layers if arithmetic.quantizes(layer)]
    int8 = teacher.n_layer * sum(layer.inputs * layer.outputs for layer in quantized)
    if arithmetic.int8 and arithmetic.has_kernels_for(vocab_size, teacher.n_embd):
        int8 += vocab_size * teacher.n_embd
    return FLOAT_BYTES * count(teacher, vocab_size).total + int8


def _teacher_head_bytes(
    model: ModelSettings, teacher: ModelSettings, vocab_size: int, tokens: int, arithmetic: Arithmetic
) -> int:
    """Return the bytes that the student's head holds of a teacher: the outputs of its last norm, and a chunk
    of its logits. In fp32 also both distributions at the temperature, and their difference."""
    rows = FLOAT_BYTES * tokens * teacher.n_embd
    if arithmetic.int8 and arithmetic.has_kernels_for(vocab_size, model.n_embd):
        return rows + FLOAT_BYTES * min(tokens * vocab_size, INT8_LOGITS_IN_CHUNK)
    return rows + 4 * FLOAT_BYTES * min(tokens * vocab_size, LOGITS_IN_CHUNK)


def _muon_bytes(model: ModelSettings, arithmetic: Arithmetic) -> int:
    """Return the bytes of Muon's iteration on one batch of matrices: directions, iterates, products.

    The compiled kernels hold one matrix per thread, a few MiB, which is not counted.
    """
    most = 0
    for columns, rows, piece, _ in model.linear_layers:
        size = rows * columns
        at_once = min(model.n_layer, max(1, MUON_ELEMENTS_AT_ONCE // size)) * size
        if not (arithmetic.int8 and arithmetic.has_kernels_for(piece, columns)):
            squares = at_once * min(piece, columns) // max(piece, columns)
            most = max(most, FLOAT_BYTES * (3 * at_once + 2 * squares))
    return most
