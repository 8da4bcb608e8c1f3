"""The kit as a third party meets it: what its pages say, what it needs, and what it does with a method that refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core import testing
from luthier.core.contracts import Adapter, Support
from luthier.core.testing import AdapterContract, Case, Contract

ROOT = Path(__file__).parents[2]
CONTRACTS = [getattr(testing, name) for name in testing.__all__ if name.endswith("Contract") and name != "Contract"]
REFUSING = Adapter(
    name="refusing",
    summary="Says no to most models.",
    attach=lambda model, *_: model,
    supports=lambda profile, *_: Support.yes() if profile.model_type == "gpt2" else Support.no("it is no gpt2"),
)
LACKING = Adapter(
    name="lacking", summary="Needs what nobody has.", attach=lambda model, *_: model, packages=("nobody-has-it>=9",)
)


class Asked:
    """What pytest hands to `pytest_generate_tests`, and what a contract does with it."""

    def __init__(self, *names: str) -> None:
        self.fixturenames = names
        self.given: list[Any] = []

    def parametrize(self, name: str, parameters: list[Any]) -> None:
        self.given = parameters


def parameters(contract: type[Contract], name: str) -> list[Any]:
    asked: Any = Asked(name)
    contract().pytest_generate_tests(asked)
    return list(asked.given)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_page_names_every_check_and_every_attribute(contract: type) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    section = page.partition(f"### {contract.__name__}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    checks = [name for name in vars(contract) if name.startswith("test_")]
    assert checks
    assert not [name for name in checks if f"`{name}`" not in section]
    named = {word for word in section.split("`") if word.startswith("test_")}
    assert named == set(checks), "the page names a check that there is not"


def test_without_pytest_it_says_so() -> None:
    code = "import sys; sys.modules['pytest'] = None; import luthier.core.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "luthier.core.testing is a kit of pytest classes and needs pytest: pip install pytest" in done.stderr


def test_a_refused_case_is_asked_for_its_reason_alone() -> None:
    refusing = type("Refusing", (AdapterContract,), {"method": REFUSING})
    assert [one.values[0].kind for one in parameters(refusing, "case")] == ["gpt2"]
    assert [one.values[0].kind for one in parameters(refusing, "any_case")] == list(testing.KINDS)


def test_what_the_machine_lacks_skips_the_checks_and_says_what() -> None:
    lacking = type("Lacking", (AdapterContract,), {"method": LACKING, "kinds": ("llama",)})
    (one,) = parameters(lacking, "case")
    (mark,) = one.marks
    assert mark.name == "skip"
    assert "nobody-has-it>=9 (not installed)" in mark.kwargs["reason"]


def test_options_stand_beside_the_example_of_a_method() -> None:
    peft: Any = type("Peft", (AdapterContract,), {"method": "peft", "options": ({}, {"tuner": "vera"}), "kinds": ("llama",)})
    assert [dict(case.options) for case in peft().cases()] == [{"tuner": "ia3"}, {"tuner": "vera"}]


def test_a_model_is_the_same_each_time_and_not_as_training_begins() -> None:
    import torch

    first, second = (Case("gpt2").tiny.load().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["transformer.h.0.attn.c_attn.bias"].any()


def test_the_float64_reference_is_float64_throughout() -> None:
    """Differences of the loss agree with the gradient to nine digits, which no float32 inside the model would leave."""
    from luthier.core.testing import measuring

    for kind in testing.KINDS:
        model = Case(kind).tiny.load()
        with measuring.float64(model):
            _, slopes = measuring.gradients(model)
            assert not measuring.wrong_slope(model, slopes, tolerance=1e-5), kind
