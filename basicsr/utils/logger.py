"""Messages to the console and to a file, past a progress bar."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

NAME = 'basicsr'


class _ConsoleHandler(logging.StreamHandler):
    """Writes above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def get_logger() -> logging.Logger:
    return logging.getLogger(NAME)


def log_to_console(rank: int = 0) -> logging.Logger:
    """Only the main process speaks, which has rank 0; the others report errors alone."""
    logger = get_logger()
    logger.propagate = False
    logger.setLevel(logging.ERROR if rank else logging.INFO)
    handler = next((each for each in logger.handlers if isinstance(each, _ConsoleHandler)), None)
    if handler is None:
        handler = _ConsoleHandler()
        logger.addHandler(handler)
    who = f' rank {rank}' if rank else ''
    handler.setFormatter(logging.Formatter(f'%(asctime)s %(levelname)s{who}: %(message)s', '%H:%M:%S'))
    return logger


def log_to_file(path: Path) -> None:
    """Appends to `path` from now on, and to no other file."""
    logger = get_logger()
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding='utf-8', errors='backslashreplace')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
    logger.addHandler(handler)
