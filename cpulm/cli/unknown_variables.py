"""Environment variables that are named like cpulm's own, and that cpulm does not read."""

from __future__ import annotations

from collections.abc import Mapping

from cpulm.command import ENV_PREFIX, is_setting

_OTHERS = ("CPULM_CACHE", "CPULM_DEBUG", "CPULM_OUT")
"""Documented variables that are not settings; CPULM_OUT is read by scripts/slurm.sbatch."""


def warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """Warn of each variable that has no effect, with the known one that is nearest to it.

    The processes of a distributed run are silent: the launcher has warned, and gives them its own variables.
    What looks like a setting is judged where settings are resolved.
    """
    if "RANK" in environ:
        return
    names = [name for name in environ if name.upper().startswith(ENV_PREFIX) and not is_setting(name)]
    for name in sorted(name for name in names if name not in _OTHERS):
        _warn(name)


def _warn(name: str) -> None:
    import difflib

    from cpulm.settings.resolve_settings import known_keys
    from cpulm.ui.console import show_warning

    known = {other.removeprefix(ENV_PREFIX).lower(): other for other in _OTHERS}
    known |= {key: ENV_PREFIX + key.upper().replace(".", "__", 1) for key in known_keys()}
    word = name[len(ENV_PREFIX) :].lower()
    if word.replace("_", ".", 1) in known:
        return  # an error where settings are resolved
    close = [key for key in known if key.endswith(f".{word}")]
    close = close or difflib.get_close_matches(word, known, n=1)
    hint = " or ".join(known[key] for key in close) or f"{_OTHERS[0]}, {_OTHERS[1]}, CPULM_TRAIN__LR"
    show_warning(
        f"the environment variable {name} has no effect; "
        + (f"did you mean {hint}?" if close else f"cpulm knows {hint} and its like")
    )
