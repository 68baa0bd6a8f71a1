"""Images that are written for tests, and files that programs left behind."""

import cv2
import numpy as np
from stand_in_drive import files as files

RNG = np.random.default_rng(0)


def image(height=11, width=18, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


def positions(height, width):
    """An image of 16 bit whose pixels are (row, column, 0)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint16)


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())


def read(path):
    assert path.suffix == '.png'
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]


def refusal(capsys, run, status=1):
    """The one sentence about a command that fails."""
    capsys.readouterr()
    assert run() == status
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    return error.splitlines()[-1].partition(': ')[2]
