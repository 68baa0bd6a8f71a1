"""Restores the images of a folder, or one image: `python demo.py --help`. The program is basicsr/demo.py."""

import sys

if __name__ == '__main__':
    from basicsr.utils.cli import run

    sys.exit(run('basicsr.demo'))
