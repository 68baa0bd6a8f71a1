"""Work on many images, by several processes or threads."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from basicsr.utils.errors import UserError

Item = TypeVar('Item')
Item_co = TypeVar('Item_co', covariant=True)
Result = TypeVar('Result')
Key = TypeVar('Key')
Written = TypeVar('Written')


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

    Raises what either raises, and UserError if a process dies.
    """
    try:
        return [then(item) for item in _computed(items, workers, what, unit)]
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # or it keeps the processes
        if isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker '):
            raise UserError(' '.join(str(error).split())) from None
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


def in_stages(
    keys: Iterable[Key],
    read: Callable[[Key], Item],
    work: Callable[[Item], Result],
    write: Callable[[Result], Written],
    device: torch.device,
) -> Iterator[tuple[Key, Callable[[], Written]]]:
    """Each key, in order, with a function to call once, before the next key: it gives `write(work(read(key)))`, or
    raises what one of them raised.

    While a device other than the CPU works, one thread reads the next item and another writes the one before, so that
    there are three at a time. `work` is always called here. On a CPU, which has no time to spare and must not run out
    of memory, everything is done in turn, when the function is called.
    """
    if device.type == 'cpu':
        for key in keys:
            yield key, lambda key=key: write(work(read(key)))
        return
    start = partial(ThreadPoolExecutor, 1)
    if device.type == 'cuda':  # a thread begins with the first GPU as the current one
        start = partial(start, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))
    with start() as reader, start() as writer:
        behind: list[tuple[Key, Callable[[], Written]]] = []
        for key, item in _read_ahead(reader, read, keys):
            try:
                result = work(item.result())
            except Exception as error:
                # Kept nowhere else: its traceback holds the memory of the attempt.
                failure = [error]
                yield from [*behind, (key, partial(_raise, failure))]
                behind = []
            else:
                yield from behind
                behind = [(key, writer.submit(write, result).result)]
        yield from behind


def _read_ahead(
    reader: ThreadPoolExecutor, read: Callable[[Key], Item], keys: Iterable[Key]
) -> Iterator[tuple[Key, Future[Item]]]:
    before: list[tuple[Key, Future[Item]]] = []
    for key in keys:
        now = [(key, reader.submit(read, key))]
        yield from before
        before = now
    yield from before


def _raise(failure: list[Exception]) -> NoReturn:
    raise failure.pop()
