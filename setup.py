"""Everything is declared in pyproject.toml; this file only keeps `python setup.py develop` working."""

import subprocess
import sys

if 'develop' in sys.argv[1:]:
    # Before setuptools is imported: its own `develop` is deprecated, and `--no_cuda_ext`, which people
    # still type, is an option that it does not know. There is nothing to compile either way.
    from pathlib import Path

    sys.exit(
        subprocess.call([sys.executable, '-m', 'pip', 'install', '-e', str(Path(__file__).resolve().parent)])
    )

from setuptools import setup

setup()
