"""Python's declarations of the C functions match the library's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpulm.layer_shapes import ACTIVATIONS
from cpulm.native import library, signatures
from cpulm.native.decode import DecoderShape
from cpulm.native.library import KernelsUnavailableError, load


def test_every_exported_function_has_a_signature() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in library.sources())
    defined = re.findall(r"^(?:void|int|int64_t) (cpulm_\w+)\(", code, re.MULTILINE)
    assert sorted(defined) == sorted(signatures.SIGNATURES)
    assert re.findall(r"^const char \*(cpulm_\w+)\(", code, re.MULTILINE) == list(signatures.NAME_LISTS)


@pytest.mark.parametrize(("name", "codes"), [("cpulm_lanes", "i"), ("cpulm_dropout", "pquufpq")])
def test_a_library_with_other_arguments_is_refused(
    kernels_library: Path, monkeypatch: pytest.MonkeyPatch, name: str, codes: str
) -> None:
    monkeypatch.setitem(signatures.SIGNATURES, name, codes)
    load.cache_clear()
    with pytest.raises(KernelsUnavailableError, match=f"{name} takes"):
        load(kernels_library)


def test_a_library_without_a_function_is_refused(
    kernels_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(signatures.SIGNATURES, "cpulm_to_come", "")
    load.cache_clear()
    with pytest.raises(KernelsUnavailableError, match="cpulm_to_come"):
        load(kernels_library)


def test_the_decoder_takes_the_tensors_and_sizes_that_python_gives(kernels_library: Path) -> None:
    loaded = load(kernels_library)
    shape = DecoderShape(32, 2, 1, 16, 64, 128, 99, "rmsnorm", "swiglu", False, 1e-6)
    assert set(loaded.cpulm_decode_tensors().decode().split()) == set(shape.tensors())
    assert set(loaded.cpulm_decode_last_tensors().decode().split()) == set(shape.last_tensors())
    given = set(shape._fields) - {"eps"} | {"layers"}
    assert set(loaded.cpulm_decode_sizes().decode().split()) == given
    assert set(loaded.cpulm_decode_activations().decode().split()) <= set(ACTIVATIONS)
