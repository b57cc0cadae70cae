"""Texts on which tokenizers of different programs may disagree."""

from __future__ import annotations

import random

_PLANES = (
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x370, 0x590),
    (0x590, 0x700),
    (0x900, 0xE00),
    (0x2000, 0x2070),
    (0x2190, 0x2600),
    (0x3000, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xE000, 0xF900),
    (0xFE00, 0xFFF0),
    (0x10000, 0x10400),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6E0),
    (0xE0100, 0xE01F0),
    (0xF0000, 0xF0100),
    (0x10FF00, 0x10FFFE),
)
"""Ranges of code points: scripts, punctuation, symbols, and every plane that has characters."""
_PIECES = (
    *(
        " ",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " \n",
        "\n ",
        "\t\t",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u0085",
    ),
    *("'s", "'S", "'t", "'re", "'VE", "'ll", "'d", "'x", "''", "’s"),
    *("a", "Word", "HTTP", "naïve", "Привет", "你好", "こんにちは", "한국어", "שלום", "नमस्ते", "e\u0301", "ﬁ"),
    *("1", "12", "1234567", "3.14", "½", "²", "٣", "Ⅷ", "1e-9", "0x1F"),
    *("!", "?!", "...", "—", "«", "_", "__init__", "->", "==", "//", "#", "$", "€", "🙂", "👨‍👩‍👧", "\ufe0f"),
    *("<|endoftext", "|>", "<unk>", "\\n", "\x00", "\x07", "\x7f", "\ufeff", "\ufffd", "\u200b"),
)


def texts(number: int, seed: int = 0) -> list[str]:
    """Code, one text from each range of code points, and ``number`` random mixtures."""
    draw = random.Random(seed)
    found = [_CODE, "", " ", "\n", "It's  what we'll\n\n\tsee, isn't   it?\r\n"]
    for low, high in _PLANES:
        found.append("".join(chr(draw.randrange(low, high)) for _ in range(60)))
        found.append(" ".join(chr(draw.randrange(low, high)) for _ in range(20)))
    for _ in range(number):
        found.append("".join(_piece(draw) for _ in range(draw.randrange(1, 12))))
    return found


def _piece(draw: random.Random) -> str:
    if draw.random() < 0.7:
        return draw.choice(_PIECES)
    low, high = draw.choice(_PLANES)
    return chr(draw.randrange(low, high))


_CODE = '''
def main(argv: list[str]) -> int:
    """Print it's sum."""
    total = sum(int(word, 16) for word in argv[1:] if word != "")
\tprint(f"{total:,}\\n", end="")  # 1,234,567

    return 0 if total < 10**6 else -1


#include <stdio.h>
int main(void) { for (int i = 0; i < 100; ++i) printf("%d\\n", i<<2); return 0; }
<p class="a-b_c">R&amp;D</p> {"key": [1.5e-3, null, true]} SELECT * FROM t WHERE x!='y';
'''
