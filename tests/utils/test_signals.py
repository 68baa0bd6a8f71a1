import multiprocessing
import os
import signal
import time

import pytest

from basicsr.utils.signals import StopRequest, leave_to_main_process


def test_an_ignored_signal_stays_ignored_after_a_request_to_stop():
    """A shell starts a program in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.deferring():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert stop.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(ready):
    leave_to_main_process()
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize('method', ['fork', 'forkserver'])
def test_the_main_process_ends_its_workers(method):
    context = multiprocessing.get_context(method)
    ready = context.Event()
    worker = context.Process(target=_wait, args=[ready])
    worker.start()
    assert ready.wait(30)
    worker.terminate()
    worker.join(10)
    ended = worker.exitcode
    worker.kill()
    assert ended == 0
