"""Checks of command-line arguments that several programs have; without PyTorch, so that --help answers at once."""

from __future__ import annotations

import argparse


def too_small(args: argparse.Namespace, **least: int) -> str:
    """What to say of the first argument that is given and below its least value; '' if there is none.

    >>> too_small(argparse.Namespace(workers=-1, limit=None), limit=1, workers=0)
    '--workers: found -1; allowed: 0 or more'
    """
    for name, value in least.items():
        found = getattr(args, name)
        if found is not None and found < value:
            return f'--{name}: found {found}; allowed: {value} or more'
    return ''
