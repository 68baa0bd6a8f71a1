"""The signals that ask a program to end: Ctrl-C, SIGTERM, SIGHUP (the terminal goes away) and SIGUSR1 (Slurm)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

_ENDING = [
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)
]
SAME_EVENT = 0.5  # seconds; a signal this soon after the first does not count as a second one


def status_of(number: int) -> int:
    """The exit status of a program that a signal ended, as shells count it.

    >>> status_of(15)
    143
    """
    return 128 + number


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handles the signals, except those that this process ignores, such as SIGHUP after nohup."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        for number in _ENDING:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def exit_quietly(number: int, _: FrameType | None) -> NoReturn:
    """A handler for imports, where other code may catch or replace an exception."""
    os._exit(status_of(number))


def end(number: int, _: FrameType | None) -> NoReturn:
    """A handler that ends the program through every `finally`."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(status_of(number))


def leave_to_main_process() -> None:
    """Ignores the signals in a worker process: a terminal or a batch system sends them to all processes of a program,
    and the main one decides. Only the SIGTERM by which the main process ends its workers counts."""
    for number in _ENDING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # else SIGTERM ends the worker, whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        main_process = multiprocessing.parent_process()
        assert main_process and main_process.pid
        threading.Thread(target=_exit_with, args=[main_process.pid], daemon=True).start()


def _exit_with(main_process: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main_process:
        pass
    os._exit(0)


class StopRequest:
    """Holds the first signal since `deferring` began."""

    number = 0  # none yet

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Meanwhile the first signal only sets `number`. A second one, later than SAME_EVENT, ends the process at
        once."""
        with handling(self._note):
            yield

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        handled = [each for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN]
        text = f'\n{signal.Signals(number).name}: stopping after this step; a second signal stops at once\n'
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # not print, which this handler may interrupt
        # One event often gives several signals: a terminal that closes sends SIGHUP twice, systemd sends it right after
        # SIGTERM, `timeout` signals the process and its group, and torchrun passes on what Slurm has sent to every
        # process.
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        time.sleep(SAME_EVENT)
        for each in handled:
            if signal.Signals(each).name != 'SIGHUP':
                signal.signal(each, signal.SIG_DFL)  # works even while the main thread waits in a library
