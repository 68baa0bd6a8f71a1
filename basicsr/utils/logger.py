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


def log_to_console(is_main: bool = True) -> logging.Logger:
    """Only the main process speaks; the others report errors alone."""
    logger = get_logger()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s', '%H:%M:%S'))
        logger.addHandler(handler)
    return logger


def log_to_file(path: Path) -> None:
    """Appends to `path` from now on, and to no other file."""
    logger = get_logger()
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
    logger.addHandler(handler)
