"""Files from the web: whole and checked under their names, or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from basicsr.utils.errors import DownloadError
from basicsr.utils.files import check_room, lock, sync_folder

CHUNK = 1 << 16
TIMEOUT = 60  # seconds without a byte
RANGE_IGNORED, RANGE_GIVEN, NOTHING_AFTER = 200, 206, 416  # what a server may answer to a Range


@dataclass(frozen=True)
class RemoteFile:
    url: str
    size: int  # in bytes
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition('/')[2]

    def is_at(self, path: Path) -> bool:
        """Whether the file there is this one, by every byte. Raises DownloadError if it cannot be read."""
        try:
            with path.open('rb') as file:
                return os.fstat(file.fileno()).st_size == self.size and _sha256(file) == self.sha256
        except OSError as error:
            raise DownloadError(f'{path}: cannot be read: {error.strerror}') from None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _part_of(path: Path) -> Path:
    return path.with_name(f'{path.name}.part')


# --- HTTP ---------------------------------------------------------------------------------------------------


def fetch(remote: RemoteFile, path: Path) -> None:
    """Downloads by HTTP. What has arrived is kept as `<path>.part`, where the next call goes on; `path` is given,
    or replaced, once all is there and its checksum is right. Raises DownloadError."""
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('a+b') as file:
            if not lock(file):  # two processes would both append to it
                raise DownloadError(f'{part}: another process is writing to it')
            try:
                _complete(file, remote, path.parent)
                file.flush()
                os.fsync(file.fileno())
                _check(file, remote)
            finally:
                file.flush()
                if os.fstat(file.fileno()).st_size == 0:
                    part.unlink()
            part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DownloadError(f'{path}: cannot be written: {error.strerror or error}') from None


def _complete(file: BinaryIO, remote: RemoteFile, folder: Path) -> None:
    """Appends what is missing."""
    done = file.seek(0, os.SEEK_END)
    if done >= remote.size:
        return  # it is the checksum's turn
    with _open(remote.url, done) as response:
        if response.status != RANGE_GIVEN:
            done = 0
        elif _start_of(response) != done:
            raise DownloadError(
                f'{remote.url}: found bytes from {_start_of(response)} on in the answer; allowed: from {done} on'
            )
        # Of a portal or a proxy. It must not replace what is there.
        if response.headers.get_content_type() == 'text/html':
            raise DownloadError(f'{remote.url}: found a web page in the answer; allowed: the file')
        # None: chunked, without a length
        if response.length is not None and done + response.length != remote.size:
            raise DownloadError(_wrong_size(remote, f'{done + response.length:,}'))
        check_room(folder, remote.size - done)
        file.truncate(done)
        with tqdm(total=remote.size, initial=done, desc=remote.name, unit='B', unit_scale=True) as bar:
            while chunk := _read(response, remote, done):
                done += len(chunk)
                if done > remote.size:
                    file.truncate(0)
                    raise DownloadError(_wrong_size(remote, f'more than {remote.size:,}'))
                file.write(chunk)
                bar.update(len(chunk))
    if done < remote.size:
        raise DownloadError(_cut_off(remote, done, 'it was closed'))


def _check(file: BinaryIO, remote: RemoteFile) -> None:
    found = _sha256(file)
    if found != remote.sha256:
        file.truncate(0)  # it would be wrong for ever
        raise DownloadError(
            f'{remote.url}: found a file with the sha256 {found}; allowed: {remote.sha256}; nothing of it was kept'
        )


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """The answer, status 206 if it begins at byte `start`, 200 if it is the whole file."""
    headers = {'User-Agent': 'restormer', 'Accept-Encoding': 'identity'}
    if start:
        headers['Range'] = f'bytes={start}-'
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - not of the user's choice
        return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == NOTHING_AFTER and start:
            return _open(url, 0)
        raise DownloadError(
            f'{url}: the server answers with HTTP status {error.code} ({error.reason})'
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f'{url}: cannot be reached: {_reason(error)}') from None


def _start_of(response: http.client.HTTPResponse) -> int | None:
    found = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
    return int(found[1]) if found else None


def _read(response: http.client.HTTPResponse, remote: RemoteFile, done: int) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(_cut_off(remote, done, _reason(error))) from None


def _reason(error: BaseException) -> str:
    inner = getattr(error, 'reason', error)  # of a URLError
    if isinstance(inner, socket.gaierror):
        return f'its name is not found, maybe because this machine is offline ({inner.strerror})'
    if isinstance(inner, TimeoutError):
        return f'no answer in {TIMEOUT} seconds'
    text = (isinstance(inner, OSError) and inner.strerror) or str(inner) or type(inner).__name__
    return ' '.join(text.split())


def _wrong_size(remote: RemoteFile, found: str) -> str:
    return f'{remote.url}: found a file of {found} bytes; allowed: {remote.size:,}'


def _cut_off(remote: RemoteFile, done: int, why: str) -> str:
    return (
        f'{remote.url}: the connection was lost after {done:,} of {remote.size:,} bytes ({why}); '
        'the same command goes on from there'
    )


# --- Google Drive -------------------------------------------------------------------------------------------


def fetch_zip_from_drive(file_id: str, path: Path) -> None:
    """Downloads a zip archive from Google Drive, by gdown, which must be installed, and which goes on with what an
    earlier call has left. `path` is given, or replaced, once all is there; what is in it is not looked at. Raises
    DownloadError."""
    part = _part_of(path)  # gdown appends to <part>…part, and gives this name at the end
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _gdown(file_id, part, path)
        if not zipfile.is_zipfile(part):
            part.unlink(missing_ok=True)
            raise DownloadError(
                f'{path}: found no zip archive in what came from Google Drive; nothing of it was kept'
            )
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DownloadError(f'{path}: cannot be written: {error.strerror or error}') from None


def _gdown(file_id: str, part: Path, path: Path) -> None:
    import gdown
    from gdown.exceptions import FileURLRetrievalError

    url = f'https://drive.google.com/uc?id={file_id}'
    try:
        gdown.download(url=url, output=str(part), resume=True, timeout=TIMEOUT)
    except FileURLRetrievalError:
        raise DownloadError(
            f'{path}: Google Drive gives no access to the file, as a rule because it was downloaded too often today; '
            f'try again tomorrow, or download {url} in a browser to this very name, and repeat the command'
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of a file, not of the network
            raise
        raise DownloadError(
            f'{path}: {_refusal_of_drive(error)}; the same command goes on from there (if never, then without '
            f'{part.name}*)'
        ) from None


def _refusal_of_drive(error: Exception) -> str:
    """What gdown said. Errors of the network are those of requests, which have the server's answer with them."""
    answer = getattr(error, 'response', None)
    if answer is not None:
        return f'Google Drive answers with HTTP status {answer.status_code}'
    if isinstance(error, OSError):
        return f'Google Drive cannot be reached, or the connection was lost ({type(error).__name__})'
    return f'the download from Google Drive failed: {" ".join(str(error).split()).rstrip(".") or type(error).__name__}'
