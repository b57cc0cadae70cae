"""Controls how long OpenMP threads spin at the end of a parallel region before they sleep.

They spin to be ready for the next region: 3 ms with libgomp, 200 ms with LLVM's and Intel's library. That is
fast if no other program needs the processor. Beside busy programs, however, a spinning thread takes the
processor from the thread that it waits for: a region of 0.1 ms then takes 30 ms (2 cores, two busy programs,
torch 2.13).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

from cpulm.linked_functions import linked_function

_DEFAULT_BLOCKTIME_MS = 200
_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ShortSpin:
    """Switches the loaded OpenMP library between its default spinning and very short spinning.

    - The libraries of LLVM and Intel have a function for it.
    - libgomp has none, but it spins 100 times instead of 300,000 while it manages more threads than there are
      processors (``gomp_throttled_spin_count_var`` in its ``env.c``, read at every wait). So an extra thread
      creates a second team of that many threads and sleeps; the team ends with that thread.

    Does nothing if no such library is found, or if the user has set ``OMP_WAIT_POLICY``,
    ``GOMP_SPINCOUNT`` or ``KMP_BLOCKTIME``.
    """

    def __init__(self) -> None:
        set_by_user = any(
            name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        )
        self._set_blocktime = None if set_by_user else _function("kmp_set_blocktime", ctypes.c_int)
        region = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel = None if set_by_user else _function("GOMP_parallel", *region)
        self._end: threading.Event | None = None
        self._team: threading.Thread | None = None
        self.is_on = False

    def switch(self, on: bool) -> None:
        """Switch to short spinning from the next wait on, or back to the library's default."""
        if on == self.is_on or (self._set_blocktime is None and self._parallel is None):
            return
        self.is_on = on
        if self._set_blocktime is not None:
            self._set_blocktime(0 if on else _DEFAULT_BLOCKTIME_MS)
        elif on and self._parallel is not None:
            self._end, ready = threading.Event(), threading.Event()
            self._team = threading.Thread(
                target=_hold_team, args=(self._parallel, ready, self._end), name="cpulm-openmp", daemon=True
            )
            self._team.start()
            ready.wait()
        else:
            assert self._end is not None
            assert self._team is not None
            self._end.set()
            self._team.join()


def _hold_team(parallel: Callable[..., None], ready: threading.Event, end: threading.Event) -> None:
    """Hold a team of more threads than there are processors, all asleep, until ``end`` is set."""
    nothing = _REGION(lambda _: None)
    parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
    ready.set()
    end.wait()


def _function(name: str, *arguments: type) -> Callable[..., None] | None:
    """Return a function without a result of torch's OpenMP library; None if it has none of this name."""
    address = linked_function(name)
    return None if address is None else ctypes.CFUNCTYPE(None, *arguments)(address)
