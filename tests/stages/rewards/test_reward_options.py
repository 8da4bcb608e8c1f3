"""What a configuration says about a reward, read strictly: names, options, bounds, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import Choice
from luthier.core.config.validate import parse_options
from luthier.core.errors import PlanRefused
from luthier.core.frozen import freeze, thaw
from luthier.core.rewards import check_rewards, parse_rewards, place_rewards, support_rewards
from luthier.plugins.grpo import GrpoConfig


def term(use: str, **options: Any) -> Choice:
    return Choice(use=use, options=freeze(options))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (term("regexp", pattern="a"), r"reward\[0\]: there is no reward 'regexp'; did you mean `regex`\?"),
        (term("regex", patern="a"), r"reward\[0\].patern: unknown key; did you mean `pattern`\?"),
        (term("regex", pattern="("), "'\\(' is no regular expression"),
        (term("regex", pattern="a", weight=0), "weight 0"),
        (term("regex", pattern="a", weight="2"), "must be a number"),
        (term("length"), "at least one of min_words"),
        (term("length", min_words=3, max_words=2), r"min_words \(3\) is above max_words \(2\)"),
        (term("length", max_words=0), "must be at least 1"),
        (term("exact_match", extract="["), "no regular expression"),
        (term("function", path="rewards.py"), "such as rewards.py:score"),
        (term("function", path="rewards.txt:score"), "such as rewards.py:score"),
        (term("http", url="ftp://localhost/x"), "must be http"),
        (term("http", url="http://example.com/score"), r"allow: \[example.com\]"),
        (term("http", url="http://me:secret@localhost/"), "must not hold a password"),
        (term("http", url="http://localhost", timeout=0), "greater than 0"),
    ],
)
def test_what_is_wrong_is_said(choice: Choice, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_rewards([choice])


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"reward\[0\].*reward\[2\]") as caught:
        check_rewards([term("jason"), term("json_valid"), term("length")])
    assert "reward[1]" not in str(caught.value)


def test_none_is_no_reward() -> None:
    with pytest.raises(ValueError, match="reward is empty"):
        check_rewards([])


def test_hosts_that_may_be_asked() -> None:
    for url in ("http://localhost:8000/s", "http://127.0.0.1/s", "https://[::1]:1/s", "http://127.5.5.5/"):
        check_rewards([term("http", url=url)])
    check_rewards([term("http", url="https://scores.example.com/s", allow=["scores.example.com"])])
    with pytest.raises(ValueError, match="is not this machine"):
        check_rewards([term("http", url="http://localhost.example.com/", allow=["example.com"])])


def test_names_are_told_apart() -> None:
    names = [name for name, _ in parse_rewards([term("json_valid"), term("regex", pattern="a"), term("json_valid")])]
    assert names == ["json_valid", "regex", "json_valid-2"]


def test_a_stage_takes_one_or_several() -> None:
    for given in ({"use": "json_valid"}, [{"use": "json_valid"}], "json_valid"):
        config = parse_options(GrpoConfig, {"reward": given}, where="stage")
        assert config.reward == (Choice(use="json_valid"),)
    with pytest.raises(PlanRefused, match="did you mean `json_valid`"):
        parse_options(GrpoConfig, {"reward": [{"use": "json_vlaid"}]}, where="stage")
    with pytest.raises(PlanRefused, match="is required"):
        parse_options(GrpoConfig, {}, where="stage")


def test_paths_are_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("")
    (tmp_path / "rm").mkdir()
    terms = [{"use": "function", "path": "rewards.py:score"}, {"use": "run", "path": "rm"}, {"use": "json_valid"}]
    stage = Choice(use="grpo", options=freeze({"reward": terms, "beta": 0.1}))
    placed = thaw(place_rewards(stage, tmp_path).options)
    assert placed == {
        "reward": [
            {"use": "function", "path": f"{tmp_path / 'rewards.py'}:score"},
            {"use": "run", "path": str(tmp_path / "rm")},
            {"use": "json_valid"},
        ],
        "beta": 0.1,
    }
    assert place_rewards(Choice(use="sft"), tmp_path) == Choice(use="sft")


def test_a_plan_is_refused_where_a_file_or_a_run_is_missing(tmp_path: Path) -> None:
    assert support_rewards([term("json_valid")])
    missing = support_rewards([term("function", path=f"{tmp_path}/rewards.py:score")])
    assert not missing
    assert "there is no file" in missing.reason
    no_run = support_rewards([term("run", path=str(tmp_path))])
    assert not no_run
    assert "it has no plan.json" in no_run.reason
