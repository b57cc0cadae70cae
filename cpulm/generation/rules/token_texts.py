"""The text of every token, as rules see it."""

from __future__ import annotations

from cpulm.data.tokenizer import Tokenizer, byte_letters


def token_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    """The bytes of every token, empty for special tokens and holes; of words without the space between.

    None for a tokenizer that was made elsewhere, of which only the library knows them.
    """
    table = {letter: byte for byte, letter in enumerate(byte_letters())}
    texts = [b""] * tokenizer.vocab_size
    if tokenizer.kind == "other":
        return None
    unknown = tokenizer.parts["model"].get("unk_token")
    for piece, number in tokenizer.inner.get_vocab().items():
        if number in tokenizer.special_ids or piece == unknown:
            continue
        byte_level = tokenizer.kind in ("bpe", "byte")
        texts[number] = bytes(table[letter] for letter in piece) if byte_level else piece.encode()
    return texts


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of every token, of words without the space between; U+FFFD for a part of a character."""
    found = token_bytes(tokenizer)
    if found is not None:
        return [one.decode("utf-8", "replace") for one in found]
    return [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
