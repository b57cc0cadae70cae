"""``cpulm tokenize --list-cache`` and ``--prune-cache``: the tokens that runs keep in the cache."""

from __future__ import annotations


def show_cache(prune_older: str | None, *, json: bool) -> None:
    """Show the token folders in the cache, or delete those unused for a duration and show them.

    Raises:
        SettingsError: if the duration cannot be read.
    """
    import time

    from cpulm.data.token_cache import list_cached, prune
    from cpulm.errors import SettingsError
    from cpulm.ui.console import print_json, say, stdout
    from cpulm.ui.tables import rows
    from cpulm.units import format_bytes, format_duration, parse_duration

    try:
        found = list_cached() if prune_older is None else prune(parse_duration(prune_older))
    except ValueError as error:
        raise SettingsError(f"--prune-cache {prune_older}: {error}", "such as --prune-cache 30d") from error
    if json:
        print_json([one.__dict__ for one in found])
        return
    size = format_bytes(sum(one.size_bytes for one in found))
    table = [
        [
            ", ".join(one.source) or one.path,
            one.tokenizer,
            f"{one.vocab_size:,}",
            f"{one.tokens:,}",
            format_bytes(one.size_bytes),
            format_duration(time.time() - one.used),
        ]
        for one in found
    ]
    if found:
        columns = ["made from", "tokenizer", "vocabulary", "tokens", "size", "last used, ago"]
        stdout().print(rows("", columns, table))
    what = "token folder" if len(found) == 1 else "token folders"
    say(f"{len(found)} {what}, {size}{'' if prune_older is None else ', deleted'}")
