"""Adds files to wheels, and keeps `setup.py develop` working; pyproject.toml declares everything else."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if 'develop' in sys.argv[1:]:
    # Before setuptools is imported: its own `develop` is deprecated, and `--no_cuda_ext`, which people
    # still type, is an option that it does not know. There is nothing to compile either way.
    sys.exit(subprocess.call([sys.executable, '-m', 'pip', 'install', '-e', str(HERE)]))

from setuptools import setup
from setuptools.command.build_py import build_py

# Files of the repository that an installed package needs: the default weights, and pictures to try them on.
PATTERNS = (
    'Motion_Deblurring/pretrained_models/README.md',
    'Motion_Deblurring/pretrained_models/motion_deblurring_compact.pth',
    'demo/README.md',
    'demo/degraded/*',
)
SHIPPED = [path.relative_to(HERE) for pattern in PATTERNS for path in sorted(HERE.glob(pattern))]


class BuildPy(build_py):
    """Copies these files to basicsr/shipped, where basicsr/utils/files.py looks; not if the install is editable."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, 'basicsr', 'shipped')
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for source in SHIPPED:
            target = folder / source
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / source, target)

    def get_source_files(self):  # for source distributions
        return [*super().get_source_files(), *map(str, SHIPPED)]


setup(cmdclass={'build_py': BuildPy})
