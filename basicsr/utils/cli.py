"""The frame around every program: signals, exit status, and errors as one sentence. Does not import PyTorch."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from basicsr.utils.console import lost_output, protect_console
from basicsr.utils.errors import OptionError, UsageError, UserError
from basicsr.utils.files import expanded
from basicsr.utils.logger import get_logger
from basicsr.utils.signals import end, exit_quietly, handling, status_of


def run(module: str, argv: Sequence[str] | None = None) -> int:
    """Runs the program that a module defines by `parser()`, an ArgumentParser, and `main(args)`, which returns the
    exit status or None for 0.

    Returns the exit status: what `main` returns, 1 or 2 for an error (`UserError.exit_status`), 128 + n after signal n
    (130 after Ctrl-C, 143 after SIGTERM), 1 if the console lost output. The module is imported here, so that Ctrl-C is
    quiet during imports, too.
    """
    _sleep_while_waiting()
    protect_console()
    with handling(exit_quietly):
        definition = importlib.import_module(module)
        try:
            with handling(end):
                status = exit_status(lambda: definition.main(definition.parser().parse_args(argv)))
        except SystemExit as stop:  # of argparse, or of a signal
            status = stop.code if isinstance(stop.code, int) else 1
        if reason := lost_output():
            sentence = f'some output is lost, as the console cannot be written: {reason}'
            if get_logger().handlers:
                get_logger().error(sentence)  # to stdout and the log
            print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
            status = status or 1
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while Python ends, too
        return status


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
        report(f'{error.filename}: {error.strerror}' if error.filename and error.strerror else str(error))
        return 1
    except KeyboardInterrupt:
        return status_of(signal.SIGINT)
    except Exception:
        if not get_logger().handlers:
            raise
        # As text, since the exception would keep its frames, and the processes that these hold.
        get_logger().error('this is a fault of the program:\n%s', traceback.format_exc())
        return 1


def report(message: str) -> None:
    """Logs an error, in programs that log; prints it to stderr in the others."""
    if get_logger().handlers:
        get_logger().error('%s', message)
    else:
        print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors about what the arguments name (a file, a device) into UsageError."""
    try:
        yield
    except (UserError, ValueError) as error:
        raise UsageError(str(error)) from None


def _sleep_while_waiting() -> None:
    # OpenMP reads this when PyTorch is imported. By default a waiting thread spins for so long that it blocks a
    # processor which others need: on a busy machine everything takes ten times as long. Threads that sleep after this
    # many turns cost about 1 % on an idle one.
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '1000')


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


def add_param_key(group: argparse._ActionsContainer) -> None:
    """--param_key, the `key` of `load_weights`."""
    group.add_argument(
        '--param_key',
        metavar='KEY',
        help='which weights of the file, as params or params_ema; default: the averaged ones if it has any',
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
