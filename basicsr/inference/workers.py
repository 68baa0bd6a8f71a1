"""Threads that share the strips of an image.

On a CPU each thread computes its own part of the rows, with one core. That is faster than sharing every operation
between all cores: they do not wait for each other after each of a thousand operations, nor, spinning, for one that
another program uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from math import ceil
from typing import Any, TypeVar

import torch

from basicsr.utils.memory import Workspace

Result = TypeVar('Result')

# About the fewest rows of a part: each part computes two more, which its neighbours compute as well.
_LEAST_ROWS = 4

# Each worker needs memory, and more of them would wait for each other to run Python.
MOST_WORKERS = 16


def worker_count(device: torch.device, most: int = MOST_WORKERS) -> int:
    """On a CPU as many as the threads that PyTorch would use, up to a limit; elsewhere 1."""
    return min(torch.get_num_threads(), most) if device.type == 'cpu' else 1


class Workers:
    """A context in which `map` shares calls of a function between this thread and others. In each of them PyTorch uses
    one core, or more if there are more than workers."""

    def __init__(self, device: torch.device, most: int = MOST_WORKERS) -> None:
        self.count = worker_count(device, most)
        self.workspaces = [Workspace(device) for _ in range(self.count)]
        self._stack = ExitStack()

    def __enter__(self) -> Workers:
        if self.count > 1:
            threads = torch.get_num_threads()
            self._stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(threads // self.count)  # in this thread, and in those that begin now
            self._others = self._stack.enter_context(ThreadPoolExecutor(self.count - 1))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def map(self, function: Callable[..., Result], *iterables: Iterable[Any]) -> list[Result]:
        """The results of the function, each for one item of every iterable, as far as the shortest one goes."""
        calls = list(zip(*iterables, strict=False))

        def share(first: int) -> list[Result]:
            with torch.inference_mode():  # holds for one thread
                return [function(*arguments) for arguments in calls[first :: self.count]]

        others = [self._others.submit(share, first) for first in range(1, min(self.count, len(calls)))]
        shares = [share(0), *(other.result() for other in others)]
        return [shares[index % self.count][index // self.count] for index in range(len(calls))]

    def parts(self, height: int) -> list[tuple[int, int]]:
        """First and last row + 1 of one part of the image for each worker; fewer parts of a small image."""
        count = min(self.count, ceil(height / _LEAST_ROWS))
        return list(pairwise(height * part // count for part in range(count + 1)))
