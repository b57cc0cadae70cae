"""The expressions by which byte-level BPE vocabularies split text into words before they merge bytes."""

from __future__ import annotations

from typing import Any, Final, Literal

SplittingPattern = Literal["gpt2", "qwen2", "llama3"]
EXPRESSIONS: dict[SplittingPattern, str] = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""The splitting expressions of well-known byte-level vocabularies beside GPT-2's, by the model's name."""

NEW_PATTERN: Final = "qwen2"
"""By which new vocabularies split: some programs read every byte-level vocabulary as if by this one."""


def splitting_pattern(parts: dict[str, Any]) -> SplittingPattern | None:
    """The expression by which a byte-level BPE ``tokenizer.json`` splits text, if it is a well-known one.

    None for every other splitting, for further processing, and for other kinds of tokenizers.
    """
    model, splitter = parts["model"], parts.get("pre_tokenizer") or {}
    plain = not any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    if model["type"] != "BPE" or not plain or parts.get("normalizer") is not None:
        return None
    steps = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    uses_own = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return "gpt2" if uses_own else None
    if len(steps) != 2 or uses_own:
        return None
    split = {**steps[0], "pattern": None}
    if split != {"type": "Split", "pattern": None, "behavior": "Isolated", "invert": False}:
        return None
    expression = steps[0]["pattern"].get("Regex")
    return next((name for name, pattern in EXPRESSIONS.items() if pattern == expression), None)
