"""The command-line arguments that name an option file, for train.py and test.py."""

from __future__ import annotations

import argparse


def add_option_file(parser: argparse.ArgumentParser) -> None:
    """Adds -opt/--opt and --force_yml."""
    parser.add_argument('-opt', '--opt', required=True, metavar='FILE', help='the option file (YAML)')
    parser.add_argument(
        '--force_yml',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY:SUBKEY=VALUE',
        help='change options of the file',
    )
