"""The exported C functions and their argument types, which a library has to confirm when it is loaded."""

from __future__ import annotations

import ctypes

TYPES: dict[str, type] = {
    "p": ctypes.c_void_p,
    "f": ctypes.c_float,
    "i": ctypes.c_int32,
    "u": ctypes.c_uint32,
    "q": ctypes.c_int64,
}
"""A pointer, float, int32_t, uint32_t and int64_t, as ``abi.h`` writes them."""

SIGNATURES = {
    "cpulm_lanes": "",
    "cpulm_sum_blocks": "",
    "cpulm_use_openmp": "p",
    "cpulm_has_pool": "",
    "cpulm_pool_open": "",
    "cpulm_pool_work": "",
    "cpulm_pool_close": "",
    "cpulm_fast_int8": "",
    "cpulm_use_sgemm": "p",
    "cpulm_product": "pipiqqqpii",
    "cpulm_dropout": "pquufpi",
    "cpulm_rms_norm_forward": "ppfqqppi",
    "cpulm_rms_norm_backward": "ppppqqpppi",
    "cpulm_layer_norm_forward": "pppfqqpppi",
    "cpulm_layer_norm_backward": "pppppqqppppi",
    "cpulm_swiglu_forward": "pqqpi",
    "cpulm_swiglu_backward": "ppqqpi",
    "cpulm_relu2_forward": "pqpi",
    "cpulm_relu2_backward": "ppqpi",
    "cpulm_attention_workspace": "ii",
    "cpulm_attention_forward": "piiiiippppfpuufpppi",
    "cpulm_attention_backward": "ppppiiiiippppfpuufpppi",
    "cpulm_decode_workspace": "pqqi",
    "cpulm_decode": "ppfpqqpppppi",
    "cpulm_block_matrix_bytes": "qq",
    "cpulm_pack_blocks": "pqqpi",
    "cpulm_block_workspace": "qq",
    "cpulm_block_product": "pqqpqpppi",
    "cpulm_quantize": "pqqppppipi",
    "cpulm_pack_transposed": "pqqpi",
    "cpulm_pack_rows": "pqqpqqii",
    "cpulm_int8_product": "pipqqqppppipii",
    "cpulm_softmax": "pqqppppi",
    "cpulm_distill": "ppqqpffpppi",
    "cpulm_muon_workspace": "qqqi",
    "cpulm_muon": "pppqqqqfffifffpi",
}
"""Argument types by the codes of :data:`TYPES`."""

RESULTS: dict[str, type] = {
    "cpulm_lanes": ctypes.c_int32,
    "cpulm_sum_blocks": ctypes.c_int32,
    "cpulm_use_openmp": ctypes.c_int32,
    "cpulm_has_pool": ctypes.c_int32,
    "cpulm_fast_int8": ctypes.c_int32,
    "cpulm_attention_workspace": ctypes.c_int64,
    "cpulm_decode_workspace": ctypes.c_int64,
    "cpulm_muon_workspace": ctypes.c_int64,
    "cpulm_block_matrix_bytes": ctypes.c_int64,
    "cpulm_block_workspace": ctypes.c_int64,
}
"""Result types; the other functions return nothing."""

NAME_LISTS = (
    "cpulm_decode_norms",
    "cpulm_decode_activations",
    "cpulm_decode_sizes",
    "cpulm_decode_tensors",
    "cpulm_decode_last_tensors",
    "cpulm_openmp_functions",
)
"""Functions that return names separated by spaces, in the order of the C code's numbers or memory."""
