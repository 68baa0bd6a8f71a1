"""Values and names as messages show them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def show(value: Any) -> str:
    """A value as JSON, shortened to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f'{text[:77]}...'


def listed(names: Iterable[str], most: int = 8) -> str:
    """Join names for a message: the first `most`, and the number of the others."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def printable(text: str) -> str:
    """Escapes text from a file that has control characters, as a terminal would obey them."""
    return text if text.isprintable() else ascii(text)
