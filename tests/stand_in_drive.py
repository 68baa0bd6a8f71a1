"""Stands in for gdown and Google Drive; what a program said and left behind."""

import io
import re
import zipfile
from pathlib import Path

from basicsr.data import download


class RefusedError(Exception):
    pass


class Drive:
    """`archives` by id, and what goes wrong."""

    def __init__(self):
        self.archives = {}
        self.error = None
        self.calls = []

    def install(self, monkeypatch):
        monkeypatch.setattr(download, 'gdown', self)
        monkeypatch.setattr(download, 'FileURLRetrievalError', RefusedError, raising=False)

    def download(self, url, output, resume, timeout=None):
        file_id = re.fullmatch(r'https://drive\.google\.com/uc\?id=([\w-]{33})', url)[1]
        assert resume and timeout == download.TIMEOUT and output.endswith('.zip.part')
        self.calls.append(file_id)
        if self.error:
            raise self.error
        Path(output).write_bytes(self.archives[file_id])
        return output


def zipped(members):
    """The bytes of a zip archive. `members`: (name or ZipInfo, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def said(capsys, program):
    """The sentences on standard error, without progress bars, and what is on standard output."""
    out, error = capsys.readouterr()
    assert 'Traceback' not in error
    lines = re.split(r'[\r\n]+', error)
    return [line.removeprefix(f'{program}: ') for line in lines if line.startswith(f'{program}: ')], out


def files(folder):
    found = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
