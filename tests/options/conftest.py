"""Option files as text in, options or messages out; and modules of users."""

from __future__ import annotations

import textwrap

import pytest

from basicsr.options.load import read_options
from basicsr.utils import registry
from basicsr.utils.errors import OptionError

REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


@pytest.fixture
def load(tmp_path):
    """Options of a text, with settings of --force_yml; or a list of mistakes, '<file>' for its name."""

    def load(text, *settings):
        path = tmp_path / 'options.yml'
        path.write_text(textwrap.dedent(text), encoding='utf-8')
        try:
            return read_options(path, settings)
        except OptionError as error:
            assert error.mistakes
            return [mistake.replace(str(path), '<file>') for mistake in error.mistakes]

    return load


@pytest.fixture
def module(tmp_path_factory, monkeypatch):
    """Make a user's module; returns the line of an option file that imports it. Afterwards the registries are as
    they were."""
    before = {each: dict(each._entries) for each in REGISTRIES}

    def module(source):
        folder = tmp_path_factory.mktemp('users')
        name = f'users_{folder.name}'
        (folder / f'{name}.py').write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(folder)
        return f'custom_imports: [{name}]\n'

    yield module
    for each, entries in before.items():
        each._entries.clear()
        each._entries.update(entries)
