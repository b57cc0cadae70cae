"""The memory that a training process will need, counted from its settings: what is kept, and what passes.

Counted is what stands at the moments when most stands: the head's work after all blocks have kept what their
backward pass reads, the first block on the way back, the last one, and the update. Loads no torch.
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
)
from cpulm.optim.batch_size import MUON_ELEMENTS_AT_ONCE
from cpulm.settings import ModelSettings, Settings
from cpulm.system.machine import Machine, choose
from cpulm.system.precisions import cpu_precision

if TYPE_CHECKING:
    from cpulm.execution.runtime import Runtime

FLOAT_BYTES = 4

PROCESS_BYTES = 330 << 20
"""What a process holds once torch has multiplied, differentiated and updated: its code, and the rooms in
which its products pack their factors (Linux, torch 2.13)."""

HOLES = 1.3
"""Resident bytes per byte in use: blocks come and go in changing sizes and leave holes in the C library's
heap. Measured with glibc on the shapes of ``benchmarks/memory.py`` that are no presets; those check it."""


@dataclass(frozen=True)
class Arithmetic:
    """How a step is computed, as far as it decides what is kept.

    Attributes:
        int8: the linear layers' products, and the head's where there are kernels.
        lanes: numbers in a vector of the compiled kernels, which widths have to be multiples of; 0 where
            there are no kernels.
    """

    int8: bool = False
    lanes: int = 0

    def takes(self, *widths: int) -> bool:
        """Whether the compiled kernels can take rows of such widths."""
        return self.lanes > 0 and all(width % self.lanes == 0 for width in widths)

    def quantizes(self, layer: LinearShape) -> bool:
        """Whether a linear layer of this shape is of int8."""
        return self.int8 and (self.lanes == 0 or self.takes(layer.inputs, layer.outputs))


def arithmetic(runtime: Runtime) -> Arithmetic:
    """What ``runtime`` computes with."""
    lanes = 0 if runtime.kernels is None or runtime.precision == "bf16" else runtime.kernels.lanes
    return Arithmetic(int8=runtime.precision == "int8", lanes=lanes)


def expected_arithmetic(settings: Settings, machine: Machine) -> Arithmetic:
    """What a run with ``settings`` will choose on ``machine``, unless compiling the kernels fails."""
    runtime = settings.runtime
    device = choose(machine).device.value if runtime.device == "auto" else runtime.device
    if device != "cpu":
        return Arithmetic()
    kernels = runtime.kernels == "auto" and machine.compiles_kernels
    precision: str = runtime.precision
    if precision == "auto":
        precision, _ = cpu_precision(machine.instruction_sets, kernels=kernels, model=settings.model)
    lanes = vector_lanes(machine.instruction_sets) if kernels and precision != "bf16" else 0
    return Arithmetic(int8=precision == "int8", lanes=lanes)


def vector_lanes(instruction_sets: Collection[str]) -> int:
    """Float32 numbers in a vector of kernels compiled for a CPU with these instruction sets."""
    if any(name.startswith(("AVX512", "AVX-512")) for name in instruction_sets):
        return 16
    return 8 if any(name.startswith("AVX") for name in instruction_sets) else 4


def memory_bytes(settings: Settings, vocab_size: int, way: Arithmetic) -> int:
    """Peak resident memory of the training process, estimated."""
    return PROCESS_BYTES + round(HOLES * training_bytes(settings, vocab_size, way))


def training_bytes(settings: Settings, vocab_size: int, way: Arithmetic) -> int:
    """The most bytes in use at once: weights, gradients, optimizer state and activations."""
    model, train = settings.model, settings.train
    counts = count(model, vocab_size)
    matrices = counts.by_part["attention"] + counts.by_part["mlp"]
    moments = 2 * counts.total - (matrices if train.optimizer == "muon" else 0)
    tokens = train.micro_batch_size * model.block_size
    # From the second micro-batch on the gradients of the first stand there all the while.
    standing = FLOAT_BYTES * (counts.total + moments + (counts.total if train.grad_accum_steps > 1 else 0))
    gradients = FLOAT_BYTES * counts.total
    update = gradients + (_muon_bytes(model, way) if train.optimizer == "muon" else 0)
    if train.grad_accum_steps > 1:
        update -= gradients
    passing = _pass_bytes(model, vocab_size, tokens, way, train.grad_accum_steps > 1)
    if train.document_mask and not way.takes(model.head_width):
        passing += FLOAT_BYTES * tokens * model.block_size  # the mask, one for all layers
    return standing + max(update, passing)


def activation_bytes(model: ModelSettings, tokens: int, way: Arithmetic) -> int:
    """Bytes that the forward pass keeps for the backward pass, up to the head."""
    stream = FLOAT_BYTES * tokens * model.n_embd
    kept = stream + tokens * (_norm_statistics(model) + _mask_bytes(model, way))
    if model.activation_checkpointing:
        return kept + model.n_layer * stream
    return kept + model.n_layer * _block_bytes(model, tokens, way)


def _pass_bytes(
    model: ModelSettings, vocab_size: int, tokens: int, way: Arithmetic, accumulates: bool
) -> int:
    """The most that a forward and a backward pass add to what stands: at the head, or in the first block
    on the way back, or in the last one."""
    stream, table = FLOAT_BYTES * tokens * model.n_embd, FLOAT_BYTES * vocab_size * model.n_embd
    kept = activation_bytes(model, tokens, way)
    block = _block_bytes(model, tokens, way)
    if model.activation_checkpointing:
        kept_by_block, recomputed = stream, block - stream  # the block's input is kept already
    else:
        kept_by_block, recomputed = block, 0
    counts = count(model, vocab_size)
    gradients = FLOAT_BYTES * (counts.by_part["attention"] + counts.by_part["mlp"]) // model.n_layer
    head = kept + _head_bytes(model, vocab_size, tokens, way, accumulates)
    inside = table + recomputed + gradients + _way_back_bytes(model, tokens, way)
    first = kept - stream + inside  # the last norm's input is read no more
    last = first + (model.n_layer - 1) * (gradients - kept_by_block)
    embedding = 2 * table + model.n_layer * gradients + stream
    return max(head, first, last, embedding)


def _mask_bytes(model: ModelSettings, way: Arithmetic) -> int:
    """Bytes a token of what a dropout of the stream keeps: the kernel's is a seed."""
    return FLOAT_BYTES * model.n_embd if model.dropout and not way.takes(model.n_embd) else 0


def _norm_statistics(model: ModelSettings) -> int:
    """Bytes a token of what a norm of the stream keeps beside its input."""
    return FLOAT_BYTES * (1 if model.norm == "rmsnorm" else 2)


def _block_bytes(model: ModelSettings, tokens: int, way: Arithmetic) -> int:
    """What one block keeps for its backward pass."""
    norms = 2 * (FLOAT_BYTES * model.n_embd + _norm_statistics(model))
    masks = 2 * _mask_bytes(model, way)
    per_token = norms + masks + _attention_bytes(model, way) + _mlp_bytes(model, way)
    quantized = [layer for layer in model.linear_layers if way.quantizes(layer)]
    weights = sum(layer.inputs * layer.outputs for layer in quantized)  # once more in int8
    return tokens * per_token + weights


def _attention_bytes(model: ModelSettings, way: Arithmetic) -> int:
    """What attention keeps for a token: its layers' inputs, the projection, the heads' results."""
    layers = model.linear_layers
    d, q, projection = model.n_embd, layers.out.inputs, layers.qkv.outputs
    kv = (projection - q) // 2
    floats = projection + q + model.n_head  # the projection, the results, the softmaxes' divisors
    if not way.takes(model.head_width):
        if model.position == "rope" or model.qk_norm:
            floats += q + kv  # queries and keys once more, turned
        if model.qk_norm:
            floats += model.n_head + model.kv_heads
        if model.dropout:  # torch's plain way: scaled queries and keys, weights, mask, and what it left
            floats += 2 * q + 3 * model.n_head * model.block_size
    qkv_input = d if way.quantizes(layers.qkv) else FLOAT_BYTES * d
    out_input = q if way.quantizes(layers.out) else 0  # in fp32 the results stand there already
    return FLOAT_BYTES * floats + qkv_input + out_input


def _mlp_bytes(model: ModelSettings, way: Arithmetic) -> int:
    """What the MLP keeps for a token: its layers' inputs, and what the activation reads."""
    up = model.linear_layers.up
    up_input = up.inputs if way.quantizes(up) else FLOAT_BYTES * up.inputs
    return FLOAT_BYTES * up.outputs + up_input + _down_input_bytes(model, way)


def _down_input_bytes(model: ModelSettings, way: Arithmetic) -> int:
    """What the MLP's last layer keeps for a token, beside what the activation does."""
    if way.quantizes(model.linear_layers.down):
        return model.inner_width
    return 0 if ACTIVATIONS[model.mlp].keeps_result else FLOAT_BYTES * model.inner_width


def _way_back_bytes(model: ModelSettings, tokens: int, way: Arithmetic) -> int:
    """Gradients under way inside the MLP: of the stream, of the activation's result and of its input, less
    the input of the layer above, which is read no more. Torch makes some of them in steps."""
    stream = model.n_embd * (2 if model.dropout else 1)
    steps = 0 if way.takes(model.inner_width) else ACTIVATIONS[model.mlp].temporaries
    inside = model.linear_layers.up.outputs + (1 + steps) * model.inner_width
    return tokens * (FLOAT_BYTES * (stream + inside) - _down_input_bytes(model, way))


def _head_bytes(
    model: ModelSettings, vocab_size: int, tokens: int, way: Arithmetic, accumulates: bool
) -> int:
    """The head and its loss: the logits' way, or, but for int8, the gradients twice, scaled and not.

    In int8 the gradient of earlier micro-batches takes in what is added to it.
    """
    d, v = model.n_embd, vocab_size
    stream, table = FLOAT_BYTES * tokens * d, FLOAT_BYTES * v * d
    if way.int8 and way.takes(v, d):
        together = min(tokens, max(FEWEST_ROWS_IN_CHUNK, INT8_PROBABILITIES_AT_ONCE // v))
        rows = min(together, max(FEWEST_ROWS_IN_CHUNK, INT8_LOGITS_IN_CHUNK // v))
        # Logits, their probabilities, and those of the chunk before, which is let go once the next is there.
        chunk = (FLOAT_BYTES + (2 if together > rows else 1)) * rows * v
        gradient = 0 if accumulates and together == tokens else table
        return 2 * stream + gradient + table // 2 + together * v + chunk
    if tokens * v > LOGITS_IN_CHUNK:
        rows = min(tokens, max(FEWEST_ROWS_IN_CHUNK, LOGITS_IN_CHUNK // v))
        working = stream + stream + table + 2 * FLOAT_BYTES * rows * v
    else:
        return stream + 3 * FLOAT_BYTES * tokens * v + table
    return max(working, 2 * (stream + table))


def _muon_bytes(model: ModelSettings, way: Arithmetic) -> int:
    """What Muon's iteration holds of one batch of matrices: directions, iterates, and their products.

    The compiled kernels hold one matrix a thread, a few MiB, which is left out.
    """
    most = 0
    for columns, rows, piece in model.linear_layers:
        size = rows * columns
        at_once = min(model.n_layer, max(1, MUON_ELEMENTS_AT_ONCE // size)) * size
        if not (way.int8 and way.takes(piece, columns)):
            squares = at_once * min(piece, columns) // max(piece, columns)
            most = max(most, FLOAT_BYTES * (3 * at_once + 2 * squares))
    return most
