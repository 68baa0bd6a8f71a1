import errno
import json
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from basicsr.utils import files
from basicsr.utils.errors import InUseError, OptionError
from basicsr.utils.files import (
    ROOT,
    absolute,
    as_json,
    atomic_write,
    expanded,
    lock,
    lock_file,
    made_folder,
    remove_leftovers,
    resolve,
    scratch_folder,
)


def test_bases_of_relative_paths(monkeypatch, tmp_path):
    assert (ROOT / 'basicsr' / 'utils' / 'files.py').is_file()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    for path, base in ((resolve, ROOT), (absolute, tmp_path), (expanded, Path())):
        assert path('~/x') == tmp_path / 'home' / 'x'
        assert path('a/~') == base / 'a' / '~'
        assert path(tmp_path / 'a.yml') == tmp_path / 'a.yml'
    assert expanded('~nobody-has-this-name/x') == Path('~nobody-has-this-name/x')


def test_resolve_expands_environment_variables_or_names_an_unset_one(monkeypatch, tmp_path):
    monkeypatch.setenv('DATA', str(tmp_path))
    monkeypatch.delenv('UNSET', raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve('$DATA/x') == resolve('${DATA}/x') == tmp_path / 'x'
    assert resolve('a/$') == ROOT / 'a' / '$' and absolute('$DATA') == tmp_path / '$DATA'
    with pytest.raises(OptionError, match=r'found "\$DATA/\$\{UNSET\}", whose environment variable UNSET is'):
        resolve('$DATA/${UNSET}')
    (tmp_path / '$UNSET').touch()
    assert resolve(tmp_path / '$UNSET') == tmp_path / '$UNSET'  # it exists under this name


@pytest.mark.parametrize('data', [b'new', lambda file: file.write(b'new')])
def test_atomic_write_takes_bytes_or_a_function(tmp_path, data):
    path = tmp_path / 'file'
    path.write_bytes(b'something old and longer')
    atomic_write(path, data)
    assert path.read_bytes() == b'new'
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')

    def fail(file):
        file.write(b'half of the ne')
        (temporary,) = (file.name for file in tmp_path.iterdir() if file != path)
        assert temporary.startswith('.') and temporary.endswith('.tmp')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_maximum_length(tmp_path):
    path = tmp_path / ('n' * 255)
    atomic_write(path, b'x')
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != 'posix', reason='permission bits are POSIX')
def test_the_permissions_of_any_new_file(tmp_path):
    atomic_write(tmp_path / 'atomic', b'')
    (tmp_path / 'plain').write_bytes(b'')
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('atomic', 'plain')}
    assert len(modes) == 1


def test_json_has_null_for_nonfinite_numbers():
    text = as_json(
        {'a': [1.5, float('inf'), (True, float('nan'))], 'b': {'c': float('-inf'), 'd': 'NaN'}, 'e': 3}
    )
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {'a': [1.5, None, [True, None]], 'b': {'c': None, 'd': 'NaN'}, 'e': 3}


def test_a_scratch_folder_is_removed_unless_renamed(tmp_path):
    with scratch_folder(tmp_path) as folder:
        (folder / 'file').write_bytes(b'')
        (folder / 'file').rename(tmp_path / 'kept')
        (folder / 'lost').write_bytes(b'')
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
        raise KeyboardInterrupt
    with scratch_folder(tmp_path) as folder:
        folder.rename(tmp_path / 'named')
    assert {path.name for path in tmp_path.iterdir()} == {'kept', 'named'}


def test_remove_leftovers_removes_temporary_files_alone(tmp_path):
    atomic_write(tmp_path / 'file', b'whole')
    with scratch_folder(tmp_path) as folder:
        pass
    folder.mkdir()
    (folder / 'file').write_bytes(b'')
    (tmp_path / '.0123456789abcdef.tmp').write_bytes(b'')
    (tmp_path / '.mine.tmp').write_bytes(b'')
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'file', '.mine.tmp'}


OTHER = (
    'import fcntl, sys; f = open(sys.argv[1], "a+b"); fcntl.lockf(f, 2); print("locked", flush=True); input()'
)


@pytest.mark.skipif(os.name != 'posix', reason='locks are POSIX')
def test_one_process_holds_a_lock_file(tmp_path):
    path = tmp_path / '.lock'
    with subprocess.Popen(
        [sys.executable, '-c', OTHER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b'locked\n'
        with pytest.raises(InUseError, match='another process'), lock_file(path):
            pytest.fail('two holders')
        other.communicate(b'\n')
    with pytest.raises(KeyError), lock_file(path):  # the holder has ended
        assert path.exists()
        raise KeyError
    assert not path.exists()


@pytest.mark.skipif(os.name != 'posix', reason='locks are POSIX')
def test_a_lock_file_removed_while_opening_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / '.lock'
    calls = []

    def slow_lock(file):
        calls.append(1)
        if len(calls) == 1:  # between opening and locking
            path.unlink()
        return lock(file)

    monkeypatch.setattr(files, 'lock', slow_lock)
    with lock_file(path):
        assert len(calls) == 2 and path.exists()
    assert not path.exists()


def test_no_lock_in_a_read_only_folder(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(Path, 'open', refused)
    with lock_file(tmp_path / '.lock'):
        pass
    os.close(os.open(tmp_path / '.lock', os.O_CREAT))  # another user's
    with (
        pytest.raises(InUseError, match=r'another user holds the lock .*\.lock; delete it if '),
        lock_file(tmp_path / '.lock'),
    ):
        pytest.fail('of another')


@pytest.mark.skipif(os.name != 'posix', reason='locks are POSIX')
@pytest.mark.parametrize(('error', 'ends'), [(errno.ENOLCK, False), (errno.EIO, True)])
def test_file_systems_without_locks(tmp_path, monkeypatch, error, ends):
    def fails(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.fcntl, 'lockf', fails)
    with (tmp_path / 'file').open('w') as file, pytest.raises(OSError) if ends else nullcontext():
        assert lock(file)


def test_made_folders_are_removed_if_empty(tmp_path):
    with pytest.raises(KeyError), made_folder(tmp_path / 'a' / 'b'):
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / 'kept').mkdir()
    with made_folder(tmp_path / 'kept' / 'a'):
        (tmp_path / 'kept' / 'a' / 'file').touch()
    with made_folder(tmp_path / 'kept'):
        (tmp_path / 'kept' / 'a' / 'file').unlink()
        (tmp_path / 'kept' / 'a').rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ['kept']
