"""The package's logger: console, which keeps progress bars intact, and file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

NAME = 'basicsr'


class _ConsoleHandler(logging.StreamHandler):
    """Writes above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def get_logger() -> logging.Logger:
    return logging.getLogger(NAME)


def log_to_console(rank: int = 0) -> logging.Logger:
    """Logs to the console alone. Ranks other than 0 log errors only."""
    logger = get_logger()
    logger.propagate = False
    logger.setLevel(logging.ERROR if rank else logging.INFO)
    sender = f' rank {rank}' if rank else ''
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter(f'%(asctime)s %(levelname)s{sender}: %(message)s', '%H:%M:%S'))
    logger.handlers = [handler]
    return logger


def log_to_file(path: Path) -> None:
    """Appends to `path`, too."""
    handler = logging.FileHandler(path, encoding='utf-8', errors='backslashreplace')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
    get_logger().addHandler(handler)
