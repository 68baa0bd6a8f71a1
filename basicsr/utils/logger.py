"""The package's logger: console, which keeps progress bars intact, and file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

NAME = 'basicsr'


class _ConsoleHandler(logging.StreamHandler):
    """Writes above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # here, as programs import this module before they handle Ctrl-C

        tqdm.write(self.format(record), file=sys.stdout)


def get_logger() -> logging.Logger:
    return logging.getLogger(NAME)


def log_to_console(rank: int = 0) -> logging.Logger:
    """Logs to stdout from INFO on; ranks other than 0 log errors only."""
    logger = get_logger()
    logger.propagate = False
    logger.setLevel(logging.ERROR if rank else logging.INFO)
    handler = next((each for each in logger.handlers if isinstance(each, _ConsoleHandler)), None)
    if handler is None:
        handler = _ConsoleHandler()
        logger.addHandler(handler)
    sender = f' rank {rank}' if rank else ''
    handler.setFormatter(logging.Formatter(f'%(asctime)s %(levelname)s{sender}: %(message)s', '%H:%M:%S'))
    return logger


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drops the line: on a full disk, the next checkpoint ends the run with a message."""


def log_to_file(path: Path) -> None:
    """Logs to a file as well, which is appended to, instead of to an earlier one."""
    logger = get_logger()
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    handler = _FileHandler(path, encoding='utf-8', errors='backslashreplace')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
    logger.addHandler(handler)
