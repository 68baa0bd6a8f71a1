"""Registries by themselves."""

import pytest

from basicsr.utils import registry
from basicsr.utils.registry import Registry

SELF_FILLING = [value for value in vars(registry).values() if isinstance(value, Registry)]


def test_a_class_is_registered_with_and_without_parentheses():
    nets = Registry('net')

    @nets.register
    class Bare: ...

    class Called: ...

    class Named: ...

    assert nets.register(Called) is Called and nets.register('other')(Named) is Named
    assert (nets.get('Bare'), nets.get('Called'), nets.get('other')) == (Bare, Called, Named)
    assert isinstance(Bare, type)


def test_a_name_has_one_object():
    nets = Registry('net')

    def make(name):
        return type(name, (), {'__module__': 'users', '__qualname__': name})

    first, reloaded = make('Net'), make('Net')
    nets.register(first)
    nets.register(reloaded)
    assert nets.get('Net') is reloaded
    with pytest.raises(ValueError, match="net 'Net' is registered twice: users, users"):
        nets.register('Net')(make('Other'))


@pytest.mark.parametrize('each', SELF_FILLING, ids=lambda each: each.kind)
def test_the_projects_registries_fill_themselves(each):
    assert each.names() and all(name in each for name in each.names())
    with pytest.raises(KeyError, match=f"no {each.kind} is called 'nothing'; there are: {each.names()[0]}"):
        each.get('nothing')


def test_build_calls_the_entry_with_the_arguments_of_a_section():
    makers = Registry('maker')
    makers.register('make')(lambda *args, **kwargs: (args, kwargs))

    class Section:
        type = 'make'

        def arguments(self):
            return {'lr': 1}

    assert makers.build(Section(), 'parameters', fused=True) == (('parameters',), {'lr': 1, 'fused': True})
