import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from basicsr.tasks import TASKS
from basicsr.utils.cli import at_least, run
from basicsr.utils.files import ROOT
from basicsr.utils.logger import get_logger

FOLDERS = sorted({task.folder for task in TASKS.values()})
PROGRAM = """
import argparse, errno, os, signal
from basicsr.utils.errors import *

def parser():
    p = argparse.ArgumentParser()
    p.add_argument('--count', type=int)
    return p

def main(args):
    {body}
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program(body)`: the exit status of a program whose main has this body."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(get_logger(), 'handlers', [])  # of a test before

    def program(body, *argv, head=''):
        (tmp_path / 'a_program.py').write_text(head + PROGRAM.format(body=body))
        monkeypatch.delitem(sys.modules, 'a_program', raising=False)
        monkeypatch.setattr(sys, 'dont_write_bytecode', True)
        return run('a_program', argv)

    return program


@pytest.mark.parametrize(
    ('body', 'status', 'message'),
    [
        ('return None', 0, ''),
        ('return 1', 1, ''),
        ("raise DataError('a.png: is empty')", 1, 'a.png: is empty'),
        ("raise UsageError('--count: found 0')", 2, '--count: found 0'),
        ("raise OptionError(['one', 'two'])", 2, '2 mistakes in the options:\none\ntwo'),
        ("raise OSError(errno.ENOSPC, 'No space left', 'a.pth')", 1, 'a.pth: No space left'),
        ('raise KeyboardInterrupt', 130, ''),
        ('os.kill(os.getpid(), signal.SIGTERM)', 143, ''),
        ('os.kill(os.getpid(), signal.SIGHUP)', 129, ''),
        ('os.kill(os.getpid(), signal.SIGUSR1)', 138, ''),
    ],
)
def test_exit_status_and_message(program, capsys, body, status, message):
    assert program(body) == status
    said = capsys.readouterr().err
    assert message in said and 'Traceback' not in said and bool(message) == bool(said)


def test_wrong_arguments_give_2(program, capsys):
    assert program('return 0', '--count', 'many') == 2
    assert "invalid int value: 'many'" in capsys.readouterr().err


@pytest.fixture
def process(tmp_path):
    """`process(body)` runs a program whose main has this body in a process of its own, and returns its result."""

    def process(body, head='', before='', redirect='', **environment):
        (tmp_path / 'a_program.py').write_text(head + PROGRAM.format(body=body))
        code = "import sys; from basicsr.utils.cli import run; sys.exit(run('a_program'))"
        return subprocess.run(
            ['/bin/bash', '-c', f'{before} exec "$0" -c "$1" {redirect}', sys.executable, code],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}', **environment},
            capture_output=True,
            text=True,
        )

    return process


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'])
def test_a_signal_during_imports_is_quiet(process, name):
    done = process('return 0', head=f'import os, signal; os.kill(os.getpid(), signal.{name})\n')
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, name), '', '')


def test_nohup_is_respected(process):
    done = process("os.kill(os.getpid(), signal.SIGHUP); print('alive')", before="trap '' HUP;")
    assert (done.returncode, done.stdout) == (0, 'alive\n')


WRITES = "print('x' * 100_000); print('said', file=sys.stderr); open('done', 'w').write('all')"


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize(
    ('redirect', 'status'),
    [('', 0), ('>/dev/full', 1), ('2>/dev/full', 1), ('> >(exit)', 1), ('2>&-', 0), ('>&- 2>&-', 0)],
)
def test_output_that_cannot_be_written_does_not_stop_the_work(process, tmp_path, redirect, status):
    done = process(WRITES, head='import sys, time; time.sleep(0.2)\n', redirect=redirect)
    assert done.returncode == status
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr
    assert (tmp_path / 'done').read_text() == 'all'  # no text for a closed stream gets into another file
    if status and '2>' not in redirect:
        assert 'some output is lost, as the console cannot be written' in done.stderr


def test_lines_printed_before_a_kill_are_kept(process):
    assert process("print('said'); os.kill(os.getpid(), signal.SIGKILL)").stdout == 'said\n'


def test_faults_of_the_code_keep_their_traceback(program):
    with pytest.raises(ZeroDivisionError):
        program('1 / 0')


def test_signal_handlers_are_restored(program):
    before = signal.getsignal(signal.SIGTERM)
    program('return 0')
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('given', 'spins'), [({}, '1000'), ({'GOMP_SPINCOUNT': '7'}, '7'), ({'OMP_WAIT_POLICY': 'active'}, 'None')]
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(process, monkeypatch, given, spins):
    """Set before PyTorch is imported. Names that the console cannot show are printed with backslashes."""
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(name, raising=False)
    body = "import sys; assert 'torch' not in sys.modules; print(os.getenv('GOMP_SPINCOUNT'), 'caf\u00e9'); return 3"
    done = process(body, PYTHONIOENCODING='ascii', **given)
    assert (done.returncode, done.stdout) == (3, f'{spins} caf\\xe9\n'), done.stderr


def test_least_values():
    assert at_least(1)('1') == 1
    with pytest.raises(argparse.ArgumentTypeError, match='found 0; allowed: 1 or more'):
        at_least(1)('0')


def path_options(parser):
    """Every option that takes a path, of sub-commands, too."""
    for action in parser._actions:
        for command in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from path_options(command)
        with contextlib.suppress(ValueError, TypeError, argparse.ArgumentTypeError):
            if isinstance(action.type('x'), Path):
                yield action


@pytest.mark.parametrize(
    'name',
    [
        'basicsr.demo',
        *(f'scripts.{name}' for name in ('benchmark', 'export_onnx', 'prepare_data', 'synthesize_blur')),
        *(f'{path.parent.name}.{path.stem}' for task in FOLDERS for path in sorted((ROOT / task).glob('*.py'))),
    ],
)
def test_an_empty_path_is_refused(name):
    options = [*path_options(importlib.import_module(name).parser())]
    assert options
    for option in options:
        with pytest.raises(argparse.ArgumentTypeError, match='found an empty name; allowed: a file or folder'):
            option.type('')
