import threading

import pytest

from basicsr.training.run_directory import RunDirectory
from basicsr.training.run_log import RunLog
from basicsr.utils.dist import Rank


def test_a_full_disk_names_the_folder_of_tensorboard(tmp_path, small_files, monkeypatch):
    monkeypatch.setattr(threading, 'excepthook', lambda _: None)  # the thread that writes prints its traceback
    log = RunLog(RunDirectory(tmp_path), Rank(), 0, tensorboard=True)
    with small_files(100), pytest.raises(OSError, match='File too large') as caught:
        for step in range(100):
            log.tensorboard.add_scalar('loss', 0.1, step)
            log.flush()
    assert caught.value.filename == str(tmp_path / 'tb_logger')
