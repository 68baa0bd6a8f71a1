"""Settings of libraries, which are of the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Overrides:
    """Attributes with other values while any thread is within; after the last one they are as they were.

    An attribute that has its value already, after the changes before it, is left alone: it may take that value from
    a more general one, and goes on doing so.

    Args:
        changes: each (object, name of the attribute, value).
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
