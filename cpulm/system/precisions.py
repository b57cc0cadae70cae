"""Chooses the fastest precision on a CPU from its instruction sets and the model's widths.

Nothing is measured when a run starts, so the same command on the same machine always chooses the same
precision, however busy the machine is. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpulm.settings import ModelSettings

INT8_SETS = ("AVX512-VNNI", "AVX-VNNI", "AMX-INT8", "NEON-i8mm", "NEON-dotprod")
"""Instruction sets that multiply int8 several times as fast as fp32."""

WHOLE_VECTORS = 16
"""The widths of int8 matrices must be multiples of this: the numbers in the widest vector."""


_NOT_MEASURED = "cpulm was not measured on such a CPU"
_UNUSED = ("AMX-INT8", "AMX-BF16")
"""Instruction sets that no kernel uses yet; with them, another precision might be faster still."""


@dataclass(frozen=True)
class Rule:
    """A rule by which a CPU trains in int8 or bf16 instead of fp32.

    Attributes:
        precision: ``int8`` or ``bf16``.
        instructions: the instruction set that the CPU must have.
        kernels: whether the rule is for runs with the compiled kernels or for runs without them.
        from_width: the smallest ``n_embd``; None: the precision is only suggested.
        source: the time of a step relative to fp32, and the CPU on which it was measured.
    """

    precision: str
    instructions: str
    kernels: bool
    from_width: int | None
    source: str


RULES = (
    Rule("int8", "AVX512-VNNI", True, 128, "0.64 of fp32's time at width 128, 0.24 at 384, on an AMD EPYC"),
    Rule("int8", "AVX-VNNI", True, 256, f"{_NOT_MEASURED}, so only wide models"),
    Rule("int8", "NEON-i8mm", True, None, _NOT_MEASURED),
    Rule("int8", "NEON-dotprod", True, None, _NOT_MEASURED),
    Rule("int8", "AMX-INT8", True, None, _NOT_MEASURED),
    Rule("bf16", "AVX512-BF16", False, 256, "0.70 of fp32's time at width 256, on an AMD EPYC"),
)
"""The first rule that matches the CPU and the kernels is used; without a match the precision is fp32.

Measured by ``python benchmarks/precisions.py`` on an AMD EPYC with 2 cores (AVX512-VNNI, AVX512-BF16), and by
``cpulm benchmark`` on an Intel Xeon with 2 cores (AVX512-VNNI), where int8 took 0.50 of fp32's time 192 wide
and 0.35 512 wide. bf16 cannot use the kernels, and int8 with them was faster than bf16 at every width; on the
Xeon, which has no BF16, a product took five times as long in bf16 as in fp32. Without the kernels int8 took
0.78 of fp32's time at best.
"""


def has_fast_int8(instruction_sets: Collection[str]) -> bool:
    """Whether a CPU with these instruction sets multiplies int8 faster than fp32."""
    return any(name in instruction_sets for name in INT8_SETS)


def cpu_precision(
    instruction_sets: Collection[str], *, kernels: bool, model: ModelSettings | None = None
) -> tuple[str, str]:
    """Choose ``int8``, ``bf16`` or ``fp32`` for training on a CPU; return it and the reason.

    Args:
        kernels: whether the compiled kernels are used.
        model: the model that is trained; None: any that is wide enough.
    """
    rule = next((r for r in RULES if r.instructions in instruction_sets and r.kernels == kernels), None)
    if rule is None:
        if kernels or not has_fast_int8(instruction_sets):
            return "fp32", "this CPU has no instructions that make another precision faster"
        return "fp32", "without the compiled kernels int8 gains too little"
    fast = f"{rule.instructions} makes {rule.precision} fast"
    if rule.from_width is None:
        return "fp32", f"{fast}, but {rule.source}: try it with --precision {rule.precision}"
    if model is None:
        return rule.precision, f"{fast} for models at least {rule.from_width} wide ({rule.source})"
    if model.n_embd < rule.from_width:
        least = f"{fast} from a width of {rule.from_width} ({rule.source})"
        return "fp32", f"{least}, and this model is {model.n_embd} wide"
    widths = (width for layer in model.linear_layers for width in (layer.inputs, layer.outputs))
    odd = next((width for width in widths if width % WHOLE_VECTORS), None)
    if odd is not None and rule.precision == "int8":
        return "fp32", f"int8 needs widths that are multiples of {WHOLE_VECTORS}, and one is {odd}"
    unmeasured = "".join(f"; {name} was not measured" for name in _UNUSED if name in instruction_sets)
    return rule.precision, f"{fast} ({rule.source}){unmeasured}"
