"""What is printed."""

from __future__ import annotations

import io
import sys


def print_any_name() -> None:
    """A file's name may have what the console cannot show, or bytes that are no text at all: these are printed with
    backslashes, and do not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
