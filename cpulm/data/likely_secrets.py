"""Counts what looks like a secret or an e-mail address; it is shown only masked."""

from __future__ import annotations

import re

_EMAIL = "e-mail addresses"
_PATTERNS: dict[str, tuple[str, re.Pattern[str]]] = {
    _EMAIL: ("@", re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{2,63})+\b")),
    "private keys": ("-----BEGIN", re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----")),
    "AWS access keys": ("A", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    "GitHub tokens": ("gh", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,})\b")),
    "API keys (sk-...)": ("sk-", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    "Google API keys": ("AIza", re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    "Slack tokens": ("xox", re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}")),
    "JSON web tokens": ("eyJ", re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    "passwords in assignments": (
        "",
        re.compile(
            r"(?i)\b(?:password|passwd|secret|api_?key|access_?token)\b[\"']?\s{0,4}[:=]\s{0,4}[\"']([^\s\"']{8,})"
        ),
    ),
}
"""By kind: what is in every text that holds one, and what one looks like."""


class SecretCounter:
    """Counts likely secrets by kind: ``found`` has how many there are, and the first one masked."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, text: str) -> None:
        """Look through a part of a text; what is cut by its borders is missed."""
        for kind, (sign, pattern) in _PATTERNS.items():
            if sign not in text:
                continue
            for match in pattern.finditer(text):
                count, first = self.found.get(kind, (0, ""))
                self.found[kind] = (count + 1, first or masked(match[match.lastindex or 0], kind))


def masked(secret: str, kind: str) -> str:
    """Enough of a secret to find it, not enough to use it."""
    if kind == _EMAIL:
        name, _, domain = secret.partition("@")
        return f"{name[0]}***@***.{domain.rpartition('.')[2]}"
    if kind == "private keys":
        return secret
    return f"{secret[:4]}*** ({len(secret)} characters)"
