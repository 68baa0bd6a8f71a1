"""Temporary settings of libraries, for the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Overrides:
    """Temporarily override attributes; restored when the last thread leaves.

    An attribute that already has its value, after the changes before it, is left alone: it may follow a more general
    one, and continues to.

    Args:
        changes: (object, name of the attribute, value), applied in order.
    """

    def __init__(self, *changes: tuple[Any, str, Any]) -> None:
        self._changes = changes
        self._lock = threading.Lock()
        self._undo = ExitStack()
        self._threads = 0

    @contextmanager
    def within(self) -> Iterator[None]:
        with self._lock:
            if not self._threads:
                for owner, name, value in self._changes:
                    before = getattr(owner, name)
                    if before != value:
                        setattr(owner, name, value)
                        self._undo.callback(setattr, owner, name, before)
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._undo.close()  # the last change first
