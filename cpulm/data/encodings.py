"""Guesses the encoding of a file that is not UTF-8: by its byte order mark, its zero bytes, its letters."""

from __future__ import annotations

import codecs

SAMPLE_BYTES = 1 << 16

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KANA = frozenset(map(chr, range(0x3041, 0x30FF))) | frozenset("、。「」")
_HANGUL = frozenset(map(chr, range(0xAC00, 0xD7A4)))
_SEVERAL_BYTES = {
    "shift_jis": _KANA,
    "euc_jp": _KANA,
    "gb18030": frozenset(
        "的一是不了在人有我他这中大来上国个到说们为子和你地出也时年得就那要下以，。、“”：；！？"
    ),
    "big5": frozenset(
        "的一是不了在人有我他這中大來上國個到說們為子和你地出也時年得就那要下以，。、「」：；！？"
    ),
    "euc_kr": _HANGUL,
}
"""Encodings of several bytes a character: what is common in their texts, and rare if the guess is wrong."""
_ONE_BYTE = {
    "cp1252": frozenset("éèêëàâáãåäæçíìîïñóòôõöøúùûüßœšž’‘“”–—…•€£°«»§©®´·½ÄÖÜÉ"),
    "cp1251": frozenset("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэё—«»№"),
    "koi8_r": frozenset("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэё"),
    "cp1250": frozenset("ąćęłńóśźżáčďéěíňřšťúůýžőűăâîșț„”–"),
    "cp1253": frozenset("αβγδεζηθικλμνξοπρστυφχψωάέήίόύώς"),
    "cp850": frozenset("éèêàâäöüßçñáíóúåøæ"),
    "mac_roman": frozenset("éèêàâäöüßçñáíóúåøæ’‘“”–—…"),
}
_OTHER_ALPHABETS = ("cp1251", "koi8_r", "cp1253")
"""Of these, hardly a letter is ASCII."""
_SURE_OF_SEVERAL, _SURE_OF_ONE = 0.1, 0.5
"""From which part of the characters beyond ASCII on being common is enough."""


def marked_encoding(data: bytes) -> str | None:
    """The encoding that the byte order mark at the beginning names; None if there is none."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def likely_encoding(data: bytes) -> str | None:
    """The likely encoding of text that is not UTF-8, by the name that Python knows it by; None if unsure.

    Args:
        data: the beginning of a file, or the part around what is not UTF-8.
    """
    if marked := marked_encoding(data):
        return marked
    as_utf8 = data.decode("utf-8", "replace")
    beyond_ascii = sum(not letter.isascii() for letter in as_utf8)
    if as_utf8.count(_REPLACEMENT) < beyond_ascii / 2:  # UTF-8 with a few wrong bytes
        return None
    for name in ("utf-32-le", "utf-32-be"):
        if len(data) >= 4 and is_text_in(data, name):
            return name
    zeros = [data[side::2].count(0) for side in (0, 1)]
    if max(zeros) > max(4, len(data) // 32):
        name = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        return name if min(zeros) * 8 < max(zeros) and is_text_in(data, name) else None
    if max(zeros):
        return None
    for table, sure in ((_SEVERAL_BYTES, _SURE_OF_SEVERAL), (_ONE_BYTE, _SURE_OF_ONE)):
        scores = {name: _common(data, name, letters) for name, letters in table.items()}
        best = max(scores, key=lambda name: scores[name])  # the first one of equals
        if scores[best] >= sure:
            return best
    return None


def is_text_in(data: bytes, encoding: str) -> bool:
    """Whether the beginning of a file can be text in an encoding with zero bytes, such as UTF-16."""
    text = _text_in(data, encoding)
    if text is None or "\0" in text:
        return False
    return sum(not (one.isprintable() or one.isspace()) for one in text) <= len(text) // 50


def _text_in(data: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except (UnicodeError, LookupError):
        return None


def _common(data: bytes, encoding: str, letters: frozenset[str]) -> float:
    """Which part of the characters beyond ASCII is common in texts of that encoding."""
    text = _text_in(data, encoding) or ""
    beyond = [letter for letter in text if not letter.isascii()]
    if encoding in _OTHER_ALPHABETS and 4 * len(beyond) < len(text):
        return 0.0
    return sum(letter in letters for letter in beyond) / len(beyond) if beyond else 0.0
