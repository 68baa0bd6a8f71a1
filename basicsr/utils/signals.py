"""How commands end that are told to."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, through all that tidies up; the exit status is 143."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
