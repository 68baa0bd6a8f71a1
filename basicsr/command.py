"""The command `restormer` of the installed package: one word for each program."""

from __future__ import annotations

import argparse
import sys

from basicsr.utils.cli import run
from basicsr.utils.files import ROOT
from basicsr.version import __version__

# Word → module of the program, arguments that come first, what it does.
PROGRAMS: dict[str, tuple[str, list[str], str]] = {
    'demo': ('basicsr.demo', [], 'restore the images of a folder, or one image'),
    'web': ('basicsr.demo', ['--web'], 'restore photographs on a page in the browser'),
    'train': ('basicsr.train', [], 'train a network from an option file'),
    'test': ('basicsr.test', [], 'restore and measure the test sets of an option file'),
}


def parser() -> argparse.ArgumentParser:
    lines = [f'  {word:6} {what}' for word, (_, _, what) in PROGRAMS.items()]
    p = argparse.ArgumentParser(
        prog='restormer',
        usage='%(prog)s [-h] [--version] PROGRAM [ARGUMENTS …]',
        description='Image restoration with Restormer.',
        epilog='\n'.join(
            ['programs:', *lines, '', '`restormer PROGRAM --help` lists the arguments of a program.']
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    p.add_argument('program', choices=PROGRAMS, metavar='PROGRAM', help='one of those below')
    return p


def main() -> int:
    program = parser().parse_args(sys.argv[1:2]).program
    module, first, _ = PROGRAMS[program]
    arguments = [*first, *sys.argv[2:]]
    sys.argv[0] = f'restormer {program}'  # in usage and messages
    sys.path.append(str(ROOT.resolve()))  # for custom_imports
    return run(module, arguments)
