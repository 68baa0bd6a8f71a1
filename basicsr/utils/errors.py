"""Errors that end a program with one sentence instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar


class UserError(Exception):
    """Base of every error that a user can fix. The message says what is wrong, where, and what to do."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again, with the report of its traceback as the message.
        report = re.fullmatch(rf'(?s)Caught .*\n\S*{type(self).__name__}: (.*?)\n*', message)
        super().__init__(report[1] if report else message)


class UsageError(UserError, ValueError):
    """Command-line arguments that do not work."""

    exit_status = 2


class OptionError(UserError, ValueError):
    """Mistakes in an option file, one line each: file, line, key, value found, values allowed."""

    exit_status = 2

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__('\n'.join(mistakes))
        self.mistakes = mistakes


class ArchiveError(UserError, ValueError):
    """An archive that cannot be used."""


class WrongArchiveError(ArchiveError):
    """An archive that another download may fix."""


class CheckpointError(UserError, ValueError):
    """A weights file that cannot be read, or does not fit the network."""


class UnreadableError(CheckpointError):
    """A weights file that the operating system cannot read; its content may be intact."""


class DataError(UserError, ValueError):
    """A dataset or a set of images that cannot be read, written or measured."""

    @staticmethod
    def raise_all(errors: Iterable[DataError]) -> None:
        """Raises the only error, or one that lists them all, a line each; returns if there are none."""
        sentences = {str(error): error for error in errors}
        if len(sentences) > 1:
            raise DataError('these images cannot be used:\n' + '\n'.join(sentences))
        for error in sentences.values():
            raise error


class DeviceError(UserError, ValueError):
    """A device or a precision that this machine does not have."""


class DownloadError(UserError, ValueError):
    """A download that failed or delivered the wrong file."""


class ImageFileError(DataError):
    """An image that cannot be read or written, or a folder without images."""


class InUseError(UserError):
    """Another process holds the lock."""


class LaunchError(UserError, ValueError):
    """A start that does not fit --launcher, or a process group that broke."""


class PreflightError(UserError, RuntimeError):
    """The check before training failed: no memory for a stage, no compiler, or no training sample."""


class RestoreError(UserError, RuntimeError):
    """An image that cannot be restored."""


class RunError(UserError, ValueError):
    """The folder of a run or of its results cannot be used."""


class TrainingError(UserError, RuntimeError):
    """Training cannot continue; the message says why and what was saved."""
