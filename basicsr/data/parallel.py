"""Work on many images, by several processes."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import cv2
from torch.utils.data import DataLoader
from tqdm import tqdm

Item = TypeVar('Item')
Item_co = TypeVar('Item_co', covariant=True)
Result = TypeVar('Result')


class Items(Protocol[Item_co]):
    """`items[i]` is the work. It raises DataError, whose message comes through from other processes as it is."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item_co: ...


def processors() -> int:
    """That this process may run on, which a batch system may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_parallel(
    items: Items[Item], workers: int, what: str, then: Callable[[Item], Result], unit: str = 'pair'
) -> list[Result]:
    """`then(items[i])` of all items, in order: the items by so many processes, at most one for each processor (0:
    by this one), a few ahead of `then`, which is always called here. `what` stands before the progress bar.

    Raises what either raises, and RuntimeError if a process dies.
    """
    try:
        return [then(item) for item in _computed(items, workers, what, unit)]
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # or it keeps the processes
        raise


def _computed(items: Items[Item], workers: int, what: str, unit: str) -> Iterator[Item]:
    loader = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(items), processors()),
        worker_init_fn=_start_worker,
    )
    yield from tqdm(iter(loader), total=len(items), desc=what, unit=unit)


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # Both may come to all processes at once. It is the main one that ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    cv2.setNumThreads(0)  # as many processes as processors already
