"""The commands of the documentation."""

import importlib
import re
import shlex

import pytest

from basicsr.tasks import TASKS
from basicsr.utils.files import ROOT

FOLDERS = sorted({task.folder for task in TASKS.values()})
COMMAND = re.compile(rf'^\s*python ({"|".join(FOLDERS)})/(\w+)\.py\b(.*)', re.MULTILINE)
PLACES = [
    *ROOT.glob('*.md'),
    *ROOT.glob('docs/*.md'),
    *(path for folder in FOLDERS for kind in ('*.py', '*.md', '*/*.md') for path in (ROOT / folder).glob(kind)),
]


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_command_in_the_documentation_is_valid(folder):
    used = set()
    for path in PLACES:
        text = re.sub(r'\\\n\s*', ' ', path.read_text(encoding='utf-8'))
        for owner, program, arguments in COMMAND.findall(text):
            if owner == folder:
                parser = importlib.import_module(f'{folder}.{program}').parser()
                parser.parse_args(shlex.split(arguments, comments=True))
                used.add(program)
    assert used == {path.stem for path in (ROOT / folder).glob('*.py')}  # and no program is left out
