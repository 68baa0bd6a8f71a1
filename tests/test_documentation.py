"""The commands, links and versions of the documentation."""

import importlib
import re
import shlex
from collections import Counter

import pytest
import yaml

from basicsr.tasks import PROTOCOLS, TASKS
from basicsr.utils.files import ROOT
from basicsr.version import __version__

FOLDERS = sorted({task.folder for task in TASKS.values()})
COMMAND = re.compile(rf'^\s*python ({"|".join(FOLDERS)})/(\w+)\.py\b(.*)', re.MULTILINE)
PLACES = [
    *ROOT.glob('*.md'),
    *ROOT.glob('docs/*.md'),
    *(path for folder in FOLDERS for kind in ('*.py', '*.md', '*/*.md') for path in (ROOT / folder).glob(kind)),
]
PAGES = [path for path in (*PLACES, *ROOT.glob('demo/*.md')) if path.suffix == '.md']


def anchors(page):
    """The anchors that GitHub makes of the headings of a page."""
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.*)', text, re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.strip().lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
        if '://' not in link:
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists() and (not anchor or anchor in anchors(target)), link


@pytest.mark.parametrize(
    'pattern', [r'```.*?```', r'\]\(([^)\s]+)\)', r'\d(?:[\d.,/]*\d)?'], ids=['code', 'links', 'numbers']
)
def test_the_chinese_readme_has_the_same(pattern):
    english, chinese = ((ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'README_CN.md'))
    chinese = chinese.replace('(README.md)', '(README_CN.md)', 1)  # each links to the other
    found, expected = (Counter(re.findall(pattern, text, re.DOTALL)) for text in (chinese, english))
    assert found == expected


def test_the_chinese_readme_has_the_same_commands_word_for_word():
    texts = [(ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'README_CN.md')]
    english, chinese = (re.findall(r'```(?:bash|python|yaml)\n.*?```', text, re.DOTALL) for text in texts)
    assert english == chinese and len(english) > 5
    # And those in the text: all in code that has a blank in it.
    prose = [re.sub(r'```.*?```', '', text, flags=re.DOTALL) for text in texts]
    english, chinese = ({' '.join(code.split()) for code in re.findall(r'`([^`]+)`', text)} for text in prose)
    commands = {code for code in english if ' ' in code}
    assert len(commands) > 4 and commands - chinese == set()


def test_the_chinese_readme_has_the_figures_of_the_english_one():
    def figures(name, title):
        results = (
            (ROOT / name).read_text(encoding='utf-8').partition(f'\n## {title}\n')[2].partition('\n## ')[0]
        )
        return [re.findall(r'[\d.,]*\d', line) for line in results.splitlines() if line.startswith('|')]

    english = figures('README.md', 'Results')
    assert english == figures('README_CN.md', '结果') and len(english) > 8


def test_the_version_is_stated_alike():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    newest = re.search(r'^## \[(.+?)\]', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert citation['version'] == newest[1] == __version__


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


@pytest.mark.parametrize('task', TASKS.values(), ids=lambda task: task.name)
def test_published_figures_and_checksums_are_those_of_the_table(task):
    """Figures stand in the README of the task's folder; motion deblurring's weights have a page of their own."""
    readme = (ROOT / task.folder / 'README.md').read_text(encoding='utf-8')
    figures = readme.partition('Published figures\n')[2]
    published = [task.average]
    for one in task.test_sets:
        published += [one.published, *one.parts.values()]
        digits = {figure.key: figure.digits for figure in PROTOCOLS[one.protocol].figures}
        for method in (method for each in published for method in each.values()):
            for key, value in method.items():
                assert re.search(rf'\b{value:.{digits[key]}f}\b', figures), (one.name, key, value)
    pages = [readme, *(path.read_text(encoding='utf-8') for path in (ROOT / task.folder).glob('*/README.md'))]
    for remote in task.weights.values():
        assert any((remote.sha256 or remote.stem.rpartition('_')[2]) in page for page in pages), remote.name
