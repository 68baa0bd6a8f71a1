"""Command-line arguments that several programs have, and checks; without PyTorch, so that --help answers at once."""

from __future__ import annotations

import argparse


def add_tlc(group: argparse._ActionsContainer) -> None:
    """--tlc and --no-tlc; not given: None, which is for `Weights.with_tlc` to decide."""
    group.add_argument(
        '--tlc',
        nargs='?',
        type=int,
        const=True,
        metavar='WINDOW',
        help='attention over local windows (TLC, arXiv 2112.04491), which suits weights trained on patches; of 384 '
        'pixels, as published, or as many as you say: a multiple of 8. Default: with weights that '
        'were validated with it (val.tlc), as those of this repository were',
    )
    group.add_argument(
        '--no-tlc',
        dest='tlc',
        action='store_const',
        const=False,
        help='attention over the whole image, whatever the weights',
    )


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
