"""Work on many images in several processes or threads."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from basicsr.utils.errors import DataError, UserError
from basicsr.utils.signals import leave_to_main_process

Item = TypeVar('Item')
Item_co = TypeVar('Item_co', covariant=True)
Result = TypeVar('Result')
Key = TypeVar('Key')
Written = TypeVar('Written')


class Items(Protocol[Item_co]):
    """`items[i]` does the work. A UserError that it raises keeps its message between processes.

    If an image cannot be used, it may return the DataError instead, so that all such images are named.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item_co: ...


def processors() -> int:
    """Processors that this process may use; a batch system may allow only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_parallel(
    items: Items[Item | DataError], workers: int, what: str, then: Callable[[Item], Result]
) -> list[Result]:
    """Returns `then(items[i])` for all i, in order. Worker processes compute the items ahead; this one calls `then`.

    Args:
        workers: number of processes, at most one per processor; 0: no other processes.
        what: text before the progress bar.

    Raises what `items` and `then` raise, UserError if a process dies, and at the end the DataErrors that `items` gave.
    """
    results, failures = [], []
    try:
        for item in _computed(items, workers, what):
            if isinstance(item, DataError):
                failures.append(item)
            elif not failures:
                results.append(then(item))
        DataError.raise_all(failures)
        return results
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # the frames keep the processes alive
        if isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker '):
            raise UserError(' '.join(str(error).split())) from None
        raise


def _computed(items: Items[Item], workers: int, what: str) -> Iterator[Item]:
    loader: DataLoader[Item] = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_identity,
        num_workers=min(workers, len(items), processors()),
        worker_init_fn=start_worker,
    )
    yield from tqdm(iter(loader), total=len(items), desc=what)


def _identity(item: Any) -> Any:
    return item


def start_worker(_: int) -> None:
    leave_to_main_process()
    cv2.setNumThreads(0)  # there is a process per processor already


def in_stages(
    keys: Iterable[Key],
    read: Callable[[Key], Item],
    work: Callable[[Item], Result],
    write: Callable[[Result], Written],
    device: torch.device,
) -> Iterator[tuple[Key, Callable[[], Written]]]:
    """Yields each key, in order, with a function to call once before the next key: it returns
    `write(work(read(key)))`, or raises what one of them raised.

    While a GPU works on an item, one thread reads the next and another writes the previous one; `work` is called in
    the caller's thread. On a CPU, which has no time to spare and little memory, one item is done at a time, when the
    function is called.
    """
    if device.type == 'cpu':
        for key in keys:
            yield key, partial(lambda key: write(work(read(key))), key)
        return
    start = partial(ThreadPoolExecutor, 1)
    if device.type == 'cuda':  # a new thread starts on GPU 0
        start = partial(start, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))
    with start() as reader, start() as writer:
        behind: list[tuple[Key, Callable[[], Written]]] = []
        for key, item in _read_ahead(reader, read, keys):
            try:
                result = work(item.result())
            except Exception as error:
                # The only reference, as its traceback holds the memory of the attempt.
                failure = [error]
                yield from behind
                behind = []
                yield key, partial(_raise, failure)
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
