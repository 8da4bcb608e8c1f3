"""The examples in the hook specifications run, and every specification has one."""

from __future__ import annotations

import doctest
import inspect
import typing

import pytest

from luthier.core import hookspecs
from luthier.core.hookspecs import HOOKS, HookSpecs


@pytest.mark.parametrize("hook", HOOKS)
def test_example_runs(hook: str) -> None:
    function = vars(HookSpecs)[hook]
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", {}, hook, None, None)
    assert examples.examples, f"{hook} has no example"
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples)
    assert results.failed == 0


def test_table_of_hooks_is_what_the_specifications_say() -> None:
    specified = {name: function for name, function in vars(HookSpecs).items() if name.startswith("luthier_")}
    assert list(specified) == list(HOOKS)
    for name, function in specified.items():
        returned = typing.get_type_hints(function, vars(hookspecs))["return"]
        item = typing.get_args(returned)[0] if typing.get_args(returned) else None
        assert (typing.get_origin(item) or item) is HOOKS[name]
