"""Arguments that a method's callable may ask for by name, beside those that it always gets.

`attach(model, profile, config)` is the whole contract; one that needs the tokenizer or training rows declares a parameter
`context` and gets it. This is pluggy's rule: an implementation accepts what it needs, and new arguments break nobody.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


def call(function: Callable[..., R], *args: Any, **extras: Any) -> R:
    """`function(*args)`, with those of `extras` that its signature names as parameters.

    `*args` and `**kwargs` of the function ask for nothing: a wrapper that only passes arguments on gets the plain contract.
    """
    named = inspect.signature(function).parameters
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = {name: value for name, value in extras.items() if name in named and named[name].kind in keyword}
    return function(*args, **wanted)
