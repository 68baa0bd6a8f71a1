import shutil
import subprocess

import pytest

from basicsr.utils.files import ROOT

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='.ci/run is a bash script')

BLOCKS = """
<!-- ci:demo -->
```bash
python3 -m venv .venv && echo 'a  b' "$HOME"
```

<!-- ci:test -->

```bash
python3 -m venv .venv
```
"""


def commands(*arguments):
    """What `.ci/run --commands` prints: the extraction that .ci/run itself uses."""
    return subprocess.run(
        ['bash', ROOT / '.ci' / 'run', '--commands', *arguments], capture_output=True, text=True, check=False
    )


def test_the_readme_has_both_commands():
    done = commands()
    assert (done.returncode, done.stderr) == (0, '')
    demo, test = done.stdout.splitlines()
    start = 'python3 -m venv .venv && .venv/bin/pip install -e '
    assert demo.startswith(start) and '.venv/bin/python demo.py' in demo
    assert test.startswith(start) and '[test]' in test and '.venv/bin/python -m pytest' in test


@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_commands_come_out_as_they_are_written(tmp_path, newline):
    readme = tmp_path / 'README.md'
    readme.write_bytes(f'# Title\n{BLOCKS}\n```bash\nnot this\n```\n'.replace('\n', newline).encode())
    done = commands(readme)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'python3 -m venv .venv && echo \'a  b\' "$HOME"\npython3 -m venv .venv\n'


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ('<!-- ci:test -->', '', 'found <!-- ci:test --> 0 times; allowed: once'),
        ('<!-- ci:test -->', '<!-- ci:demo -->', 'found <!-- ci:demo --> 2 times'),
        ('ci:demo -->\n', 'ci:demo -->\nSome words.\n', 'no ```bash block right after <!-- ci:demo -->'),
        ('```bash', '```', 'no ```bash block right after <!-- ci:demo -->'),
        ('.venv\n```', '.venv\nsecond\n```', 'found 2 lines in the block after <!-- ci:test -->'),
        ('python3 -m venv .venv\n', ' \n', 'in the block after <!-- ci:test -->; allowed: one command'),
    ],
)
def test_a_readme_without_them_is_an_error(tmp_path, old, new, says):
    readme = tmp_path / 'README.md'
    text = BLOCKS.replace(old, new)
    assert text != BLOCKS
    readme.write_text(text)
    done = commands(readme)
    assert done.returncode != 0
    assert says in done.stderr


def test_no_readme_and_unknown_arguments(tmp_path):
    done = commands(tmp_path / 'none.md')
    assert done.returncode != 0 and 'No such file' in done.stderr
    done = subprocess.run(['bash', ROOT / '.ci' / 'run', '--fast'], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'found --fast' in done.stderr
