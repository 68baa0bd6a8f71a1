"""Reading ahead and writing behind."""

from __future__ import annotations

import threading
import weakref
from functools import partial

import pytest
import torch

from basicsr.utils.parallel import in_stages

CPU = torch.device('cpu')
OTHER = torch.device('meta')  # stands in for a GPU, as no test computes there
PATIENCE = 30  # seconds
both = pytest.mark.parametrize('device', [CPU, OTHER], ids=str)


class Item:
    """Counted while it is in memory."""

    def __init__(self, key):
        self.key = key


@both
@pytest.mark.parametrize('count', [0, 1, 2, 7])
def test_results_come_in_order(device, count):
    main, threads = threading.current_thread(), set()

    def read(key):
        assert (threading.current_thread() is main) is (device is CPU)
        return key + 1

    def work(item):
        assert threading.current_thread() is main
        return item * 2

    def write(result):
        threads.add(threading.current_thread())
        return f'{result}'

    keys = (key for key in range(count))
    found = [(key, outcome()) for key, outcome in in_stages(keys, read, work, write, device)]
    assert found == [(key, f'{2 * key + 2}') for key in range(count)]
    assert threads <= {main} if device is CPU else main not in threads


@both
def test_an_error_is_raised_for_its_own_key(device):
    spoil = {1: 'read', 2: 'work', 4: 'write', 5: 'write', 6: 'read', 7: 'work'}

    def stage(name, key):
        if spoil.get(key) == name:
            raise ValueError(name, key)
        return key

    stages = (partial(stage, name) for name in ('read', 'work', 'write'))
    found = {}
    for key, outcome in in_stages(range(9), *stages, device):
        try:
            found[key] = outcome()
        except ValueError as error:
            found[key] = error.args
    assert list(found) == list(range(9))
    assert found == {key: (spoil[key], key) if key in spoil else key for key in range(9)}


def test_the_next_item_is_read_and_the_last_one_written_while_the_device_works():
    read, working = ([threading.Event() for _ in range(6)] for _ in range(2))

    def work(key):
        working[key].set()
        assert key == 4 or read[key + 1].wait(PATIENCE)
        return key

    def write(key):
        assert key == 4 or working[key + 1].wait(PATIENCE)
        return key

    stages = in_stages(range(5), lambda key: read[key].set() or key, work, write, OTHER)
    assert [outcome() for _, outcome in stages] == list(range(5))


def test_a_cpu_does_one_thing_at_a_time():
    log = []

    def stage(name, key):
        log.append((name, key))
        return key

    stages = (partial(stage, name) for name in ('read', 'work', 'write'))
    for key, outcome in in_stages(range(3), *stages, CPU):
        log.append(('asked', key))
        outcome()
    assert log == [(name, key) for key in range(3) for name in ('asked', 'read', 'work', 'write')]


@pytest.mark.parametrize(('device', 'most'), [(CPU, 1), (OTHER, 3)])
def test_at_most_three_items_are_in_memory(device, most):
    alive, counts, reading = weakref.WeakSet(), [], []

    def read(key):
        reading.append(key)
        item = Item(key)
        alive.add(item)
        counts.append(len(alive))
        assert reading == [key]  # a dataset need not be thread-safe
        reading.pop()
        return item

    for _, outcome in in_stages(range(20), read, lambda item: item, lambda item: item.key, device):
        outcome()
    assert len(counts) == 20 and max(counts) <= most


@both
def test_a_failed_attempt_frees_its_memory_before_the_next(device):
    temporaries = []

    def work(key):
        assert all(each() is None for each in temporaries)
        temporary = Item(key)
        temporaries.append(weakref.ref(temporary))
        raise ValueError

    for _, outcome in in_stages(range(4), lambda key: key, work, lambda _: None, device):
        with pytest.raises(ValueError):
            outcome()
    assert len(temporaries) == 4


@pytest.mark.parametrize('stop', [KeyboardInterrupt, SystemExit])
def test_an_interruption_waits_for_the_file_being_written(stop):
    at_work, written = threading.Event(), []

    def work(key):
        if key == 1:
            at_work.set()
            raise stop
        return key

    def write(key):
        assert at_work.wait(PATIENCE)
        written.append(key)

    with pytest.raises(stop):
        for _, outcome in in_stages(range(9), lambda key: key, work, write, OTHER):
            outcome()
    assert written == [0]


def test_it_stops_when_the_caller_stops():
    read, written = [], []
    for key, outcome in in_stages(range(9), lambda key: read.append(key) or key, int, written.append, OTHER):
        outcome()
        if key == 1:
            break
    assert written == [0, 1]
    assert read == [0, 1, 2, 3]
