"""What train.py and test.py share: the arguments that name the options, and how a run ends in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from basicsr.utils.console import print_any_name
from basicsr.utils.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    ImageFileError,
    LaunchError,
    OptionError,
    PreflightError,
    RestoreError,
    RunError,
    TrainingError,
)
from basicsr.utils.logger import get_logger

# What can stop a run through no fault of the code; OSError: a full disk, a folder without the right to write.
STOPS = (
    CheckpointError,
    DataError,
    DeviceError,
    FloatingPointError,
    ImageFileError,
    LaunchError,
    PreflightError,
    OSError,
    RestoreError,
    RunError,
    TrainingError,
)


def option_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('-opt', '--opt', required=True, metavar='FILE', help='the option file (YAML)')
    parser.add_argument(
        '--force_yml',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY:SUBKEY=VALUE',
        help='change options of the file',
    )
    return parser


def exit_status(work: Callable[[], None], if_interrupted: str = 'Interrupted.') -> int:
    """Does the work: 0 done, 1 stopped, 2 wrong options, 130 interrupted."""
    logger = get_logger()
    print_any_name()
    try:
        work()
    except OptionError as error:
        count = len(error.mistakes)
        logger.error('%d mistake%s in the options:\n%s', count, '' if count == 1 else 's', error)
        return 2
    except STOPS as error:
        logger.error('%s', error)
        return 1
    except KeyboardInterrupt:
        logger.info('%s', if_interrupted)
        return 130
    return 0
