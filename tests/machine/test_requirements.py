"""What counts as installed, and which command is offered for what is not."""

from __future__ import annotations

import pytest

from luthier.core import requirements
from luthier.core.requirements import core_requirements, install_command, missing_packages, why_missing

PACKAGES = {"torch": "2.13.0+cpu", "flash-attn": "2.8.3", "odd": "not-a-version", "trl": "1.14.0rc1"}


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("torch", True),
        ("torch>=2.10", True),
        ("torch==2.13.0", True),  # PEP 440: a local version label is ignored where the specifier has none
        ("torch<2.13", False),
        ("Flash_Attn>=2.8", True),  # PEP 503: names are compared in canonical form
        ("absent", False),
        ("absent; python_version < '3'", True),
        ("torch>=9; python_version >= '3'", False),
        ("trl>=1.13", True),  # a pre-release that is installed was chosen
        ("trl>=1.14", False),  # ... but rc1 comes before the release
        ("odd", True),
        ("odd>=1", False),
    ],
)
def test_requirement_is_met_as_pep_508_and_440_say(requirement: str, met: bool) -> None:
    assert missing_packages([requirement], PACKAGES) == ([] if met else [requirement])


def test_what_is_missing_keeps_order_and_wording() -> None:
    assert missing_packages(["zeta>=1", "torch", "Alpha [x] >= 2"], PACKAGES) == ["zeta>=1", "Alpha [x] >= 2"]


def test_why_missing_names_what_was_found() -> None:
    assert why_missing("torch>=9", PACKAGES) == "torch>=9 (found 2.13.0+cpu)"
    assert why_missing("absent", PACKAGES) == "absent (not installed)"


def test_text_that_is_no_requirement_is_an_error() -> None:
    with pytest.raises(ValueError, match="no package requirement"):
        missing_packages(["torch=>2"], PACKAGES)


def test_command_names_luthiers_extra_when_one_brings_everything() -> None:
    assert install_command(["bitsandbytes>=0.49"]) == 'pip install "luthier[qlora]"'
    assert install_command(["trl>=1.14", "datasets>=4"]) == 'pip install "luthier[trl]"'
    assert install_command(["bitsandbytes>=0.49", "trl>=1.14"]) == 'pip install "bitsandbytes>=0.49" "trl>=1.14"'
    assert install_command(["somebodys-package>=2"]) == 'pip install "somebodys-package>=2"'
    assert install_command([]) == ""


def test_core_requirements_are_those_without_an_extra() -> None:
    texts = core_requirements()
    assert "torch>=2.10" in texts
    assert not any(text.startswith(("bitsandbytes", "pytest", "mkdocs")) for text in texts)


def test_nothing_is_required_where_luthier_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "DISTRIBUTION", "no-such-distribution")
    assert core_requirements() == []
    assert install_command(["bitsandbytes>=0.49"]) == 'pip install "bitsandbytes>=0.49"'
