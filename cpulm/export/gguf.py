"""A model as a GGUF file, which llama.cpp, Ollama, LM Studio and their like load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpulm.data.records.chat import end_id
from cpulm.errors import SettingsError
from cpulm.export.chat_template import JINJA
from cpulm.export.formats import Quantization
from cpulm.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from cpulm.export.q4_k import quantize_q4_k
from cpulm.export.trained_model import TrainedModel
from cpulm.layer_shapes import ACTIVATIONS
from cpulm.pretrained.architecture import Architecture, architecture_of
from cpulm.pretrained.gguf_names import gguf_name, interleaved, require_gguf, rotated_heads
from cpulm.pretrained.named_weights import Array, named_weights
from cpulm.settings import ModelSettings

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FILE_TYPES: Mapping[str, str] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
    "q4_k": "MOSTLY_Q4_K_S",
}
_BLOCKS: Mapping[str, int] = {"q8_0": 32, "q5_0": 32, "q4_0": 32, "q4_k": 256}
"""Weights in a block: a matrix whose rows are no multiple of it is stored in another type."""


def write_gguf(trained: TrainedModel, path: Path, quantization: Quantization) -> list[str]:
    """Write the model to ``path``, its matrices in ``quantization``.

    The file is not written whole or not at all: give a temporary ``path``.

    Returns:
        What differs from the model as cpulm computes it, in words.

    Raises:
        SettingsError: if llama.cpp has no architecture or tokenizer like the model's.
    """
    gguf = require_gguf()
    architecture = architecture_of(trained.model.settings)
    limits = _activation_limits(trained.model.settings)
    vocabulary = gguf_vocabulary(trained.tokenizer)
    if vocabulary.limit:
        limits.append(vocabulary.limit)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_name(trained.name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quantization]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_settings(writer, trained.model.settings, trained.model.vocab_size)
    records = trained.checkpoint.settings.train.records or trained.talks
    # rwkv never adds the first token, so what the template writes of it must stay.
    adds_first = records and not (trained.talks and vocabulary.model == "rwkv")
    _add_vocabulary(writer, vocabulary, trained.tokenizer.eot_id, begins_records=adds_first)
    if trained.talks:
        writer.add_chat_template(JINJA)
        writer.add_eot_token_id(end_id(trained.tokenizer))
    instead = set()
    for name, weight in _gguf_weights(trained, architecture):
        stored_as, fits = _type_of(name, weight, quantization)
        raw = gguf.GGMLQuantizationType[stored_as.upper()]
        quantize = quantize_q4_k if stored_as == "q4_k" else partial(gguf.quants.quantize, qtype=raw)
        writer.add_tensor(name, quantize(weight), raw_dtype=raw)
        if not fits:
            instead.add(stored_as)
    if instead:
        block = _BLOCKS[quantization]
        kinds = " or ".join(sorted(instead))
        limits.append(f"matrices whose rows are not a multiple of {block} wide are stored in {kinds}")
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return limits


def _activation_limits(settings: ModelSettings) -> list[str]:
    """What llama.cpp's activation does differently.

    Raises:
        SettingsError: if llama.cpp has no such activation.
    """
    error = ACTIVATIONS[settings.mlp].llama_cpp_error
    if error is None:
        raise SettingsError(
            f"llama.cpp's GPT-2 computes gelu, and this model has model.mlp = {settings.mlp}",
            "export it with `--to hf`",
        )
    if not error:
        return []
    return [f"llama.cpp computes the tanh form of gelu (differences of up to {error:g} in the hidden layer)"]


def _add_settings(writer: GGUFWriter, settings: ModelSettings, vocab_size: int) -> None:
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(settings.block_size)
    writer.add_embedding_length(settings.n_embd)
    writer.add_block_count(settings.n_layer)
    writer.add_feed_forward_length(settings.inner_width)
    writer.add_head_count(settings.n_head)
    writer.add_head_count_kv(settings.kv_heads)
    if settings.norm == "layernorm":
        writer.add_layer_norm_eps(settings.norm_eps)
        return
    writer.add_layer_norm_rms_eps(settings.norm_eps)
    writer.add_rope_freq_base(settings.rope_theta)
    writer.add_rope_dimension_count(settings.head_width)
    writer.add_key_length(settings.head_width)
    writer.add_value_length(settings.head_width)


def _add_vocabulary(
    writer: GGUFWriter, vocabulary: GgufVocabulary, eot_id: int, *, begins_records: bool
) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.model == "t5":
        writer.add_token_scores([0.0] * len(vocabulary.tokens))
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_bos_token_id(eot_id)
    writer.add_eos_token_id(eot_id)
    writer.add_pad_token_id(eot_id)
    writer.add_add_bos_token(begins_records)
    writer.add_add_eos_token(False)


def _gguf_weights(trained: TrainedModel, architecture: Architecture) -> Iterator[tuple[str, Array]]:
    """The weights by their names in GGUF files."""
    settings = trained.model.settings
    name_of = gguf_name(architecture, settings.n_layer)
    for name, weight in named_weights(trained.model, architecture).items():
        heads = rotated_heads(architecture, name, settings)
        yield name_of(name), interleaved(weight, heads) if heads else weight


def _type_of(name: str, weight: Array, quantization: Quantization) -> tuple[str, bool]:
    """The type that a tensor is stored in, and whether that is as requested.

    Norms, biases and positions stay in f32, as llama.cpp does it; so does it that q5_0 stands in for q4_k.
    """
    if weight.ndim == 1 or name.startswith("position_embd") or quantization == "f32":
        return "f32", True
    if quantization == "f16":
        return "f16", True
    # 4 bits cost most in the token embedding and the head: llama.cpp gives them 6.
    wanted = "q8_0" if name.startswith(("token_embd", "output")) else quantization
    for stored_as in (wanted, *(("q5_0",) if wanted == "q4_k" else ())):
        if weight.shape[1] % _BLOCKS[stored_as] == 0:
            return stored_as, stored_as == wanted
    return "f16", False
