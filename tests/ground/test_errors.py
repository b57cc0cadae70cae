"""The exit codes that scripts rely on."""

from __future__ import annotations

import pytest

from cpulm import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CpulmError, 1),
        (errors.SettingsError, 2),
        (errors.DataError, 3),
        (errors.DivergedError, 4),
        (errors.ResourceError, 5),
        (errors.StoppedError, 75),
        (errors.AbortedError, 130),
    ],
)
def test_exit_codes(error: type[errors.CpulmError], code: int) -> None:
    assert error.exit_code == code
    raised = error("what is wrong", "what to do")
    assert (str(raised), raised.message, raised.hint) == ("what is wrong", "what is wrong", "what to do")
