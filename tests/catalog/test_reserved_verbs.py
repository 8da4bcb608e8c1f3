"""A plugin cannot take a built-in verb: it would never be reached, so it is an error of that plugin."""

from __future__ import annotations

import pytest

from luthier.cli.app import VERBS
from luthier.core.extensions import Command
from luthier.registry.descriptions import problems_of


@pytest.mark.parametrize("verb", VERBS)
def test_built_in_verbs_are_taken(verb: str) -> None:
    problems = problems_of("luthier_commands", Command(name=verb, summary="Another one.", run=lambda words: 0))
    assert [problem for problem in problems if "built-in verb" in problem]


def test_every_built_in_verb_is_on_the_command_line() -> None:
    from luthier.cli.app import build_app

    app = build_app({})
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    groups = [str(group.name) for group in app.registered_groups]
    assert sorted([*commands, *groups]) == sorted(VERBS)
