"""Settings of libraries, which are of the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Overrides:
    """Attributes with other values while any thread is within; after the last one they are as they were.

    Args:
        changes: each (object, name of the attribute, value).
    """

    def __init__(self, *changes: tuple[Any, str, Any]) -> None:
        self._changes = changes
        self._lock = threading.Lock()
        self._before: list[Any] = []
        self._threads = 0

    @contextmanager
    def within(self) -> Iterator[None]:
        with self._lock:
            if not self._threads:
                self._before = [getattr(owner, name) for owner, name, _ in self._changes]
                for owner, name, value in self._changes:
                    setattr(owner, name, value)
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    for (owner, name, _), value in zip(self._changes, self._before, strict=True):
                        setattr(owner, name, value)
