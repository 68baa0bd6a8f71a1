"""Standard output and error that never stop the work, even if their disk is full, their reader ends or they are closed.

Text that cannot be written is lost; `lost_output` returns the reason.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any


class _Console(io.FileIO):
    """Accepts every write. `lost`: why the first lost one failed; '' if none is lost."""

    lost = ''

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe, made non-blocking by its other end
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or str(error.strerror)  # the error itself would keep its frames alive
            return len(data)


def protect_console() -> None:
    """Replaces sys.stdout and sys.stderr, unless a host of this program (a notebook, pytest) has replaced them. A file
    name may hold bytes that the console cannot show: they are printed with backslashes."""
    # A file that is opened later must not get the number of a closed standard stream.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (('stdout', 1), ('stderr', 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f'__{name}__'):
            console = io.TextIOWrapper(
                io.BufferedWriter(_Console(number, 'w', closefd=False)),
                encoding=stream.encoding if stream else None,
                errors='backslashreplace',
                line_buffering=True,  # a log can be followed, and a kill loses no line of it
                write_through=stream.write_through if stream else False,
            )
            setattr(sys, name, console)


def lost_output() -> str:
    """Returns why text is lost; '' if none is."""
    for stream in (sys.stdout, sys.stderr):
        console = getattr(getattr(stream, 'buffer', None), 'raw', None)
        if isinstance(console, _Console):
            stream.flush()
            if console.lost:
                return console.lost
    return ''
