"""What reading left out of a text, counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Losses:
    """What reading left out, counted.

    Attributes:
        replaced: places where U+FFFD was put.
        skipped: rows that could not be used.
        why_skipped: the message of the first of these.
        filtered: rows that did not meet the conditions.
        duplicates: documents left out because the same text was there before.
    """

    replaced: int = 0
    skipped: int = 0
    why_skipped: str = ""
    filtered: int = 0
    duplicates: int = 0

    def in_words(self) -> list[str]:
        """One sentence for each kind of loss that there was."""
        said = []
        if self.replaced:
            what = f"U+FFFD was put in {self.replaced:,} places that could not be decoded"
            said.append(f"{what}; if they are many, the text is in another encoding: --encoding NAME")
        if self.skipped:
            rows = "1 row was" if self.skipped == 1 else f"{self.skipped:,} rows were"
            said.append(f"{rows} left out, the first because {self.why_skipped}")
        return said

    def choices_in_words(self) -> list[str]:
        """One sentence for each kind of text that was left out because the settings say so."""
        said = []
        if self.filtered:
            said.append(f"left out {_counted(self.filtered, 'row')} that data.where does not choose")
        if self.duplicates:
            said.append(f"left out {_counted(self.duplicates, 'document')} that were there before")
        return said


def _counted(count: int, name: str) -> str:
    return f"1 {name}" if count == 1 else f"{count:,} {name}s"
