"""The frame around every program: signals, exit status, and errors as one sentence. Does not import PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from basicsr.utils.errors import OptionError, UsageError, UserError
from basicsr.utils.files import expanded
from basicsr.utils.logger import get_logger

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def run(module: str, argv: Sequence[str] | None = None) -> int:
    """Runs the program that a module defines by `parser()`, an ArgumentParser, and `main(args)`, which returns the
    exit status or None for 0.

    Returns the exit status: what `main` returns, 1 or 2 for an error (`UserError.exit_status`), 130 after Ctrl-C, 143
    after SIGTERM. The module is imported here, so that Ctrl-C is quiet during imports, too.
    """
    _set_up_process()

    def program() -> int | None:
        definition = importlib.import_module(module)
        return definition.main(definition.parser().parse_args(argv))

    try:
        with ending_cleanly():
            return exit_status(program)
    except SystemExit as stop:  # of argparse, or of a signal
        return stop.code if isinstance(stop.code, int) else 1


def exit_status(work: Callable[[], int | None]) -> int:
    """Does the work and returns the exit status; reports errors of the user and of the operating system."""
    try:
        return work() or 0
    except OptionError as error:
        count = len(error.mistakes)
        report(f'{count} mistake{"" if count == 1 else "s"} in the options:\n{error}')
        return error.exit_status
    except UserError as error:
        report(str(error))
        return error.exit_status
    except OSError as error:  # a full disk, a folder without write permission
        report(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def report(message: str) -> None:
    """Logs an error, in programs that log; prints it to stderr in the others."""
    if get_logger().handlers:
        get_logger().error('%s', message)
    else:
        print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, through every `finally`; the exit status is 143."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors about what the arguments name (a file, a device) into UsageError."""
    try:
        yield
    except (UserError, ValueError) as error:
        raise UsageError(str(error)) from None


def _set_up_process() -> None:
    # OpenMP reads this when PyTorch is imported. By default a waiting thread spins for so long that it blocks a
    # processor which others need: on a busy machine everything takes ten times as long. Threads that sleep after this
    # many turns cost about 1 % on an idle one.
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '1000')
    # A file name may hold bytes that the console cannot show: print them with backslashes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


# -------------------------------------------------------------- arguments of several programs


def add_tlc(group: argparse._ActionsContainer) -> None:
    """--tlc and --no-tlc; neither gives None, which `Weights.with_tlc` decides."""
    group.add_argument(
        '--tlc',
        nargs='?',
        type=int,
        const=True,
        metavar='WINDOW',
        help='attention over local windows (TLC, arXiv 2112.04491), which suits weights trained on patches: of 384 '
        'pixels, as published, or of WINDOW pixels, a multiple of 8. Default: on for weights that were validated '
        'with it (val.tlc), such as those of this repository',
    )
    group.add_argument(
        '--no-tlc',
        dest='tlc',
        action='store_const',
        const=False,
        help='attention over the whole image, whatever the weights',
    )


def file_or_folder(text: str) -> Path:
    """A `type=` for paths: expands `~`. Refuses an empty name, which Path takes for the working directory."""
    if not text:
        raise argparse.ArgumentTypeError('found an empty name; allowed: a file or folder')
    return expanded(text)


def at_least(least: int) -> Callable[[str], int]:
    """A `type=` for integers with a lower bound.

    >>> at_least(1)('3')
    3
    """

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'found {value}; allowed: {least} or more')
        return value

    return integer
