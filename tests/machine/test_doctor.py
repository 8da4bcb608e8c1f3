"""`luthier doctor`: everything that can be found out, one JSON document, and the right exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import doctor
from luthier.core.catalog import BrokenPlugin, Catalog, Offer, Provider
from luthier.core.contracts import Adapter
from luthier.core.environment import Environment, MatmulRate
from luthier.core.errors import ExitCode
from luthier.core.frozen import FrozenDict
from luthier.registry import catalog as catalog_module
from luthier.registry import environment as environment_module

MACHINE = Environment(
    python="3.11.0",
    platform="Linux",
    cpu="Made-up 3000",
    cores=6,
    memory=8 * 1024**3,
    matmul=FrozenDict({"float32": MatmulRate(gflops=100, error=5e-7), "bfloat16": MatmulRate(gflops=300, error=3e-3)}),
)


def adapter(name: str, *packages: str) -> Offer[Any]:
    method = Adapter(name=name, summary="for tests", packages=packages, attach=lambda model, profile, config: model)
    return Offer(value=method, provider=Provider(plugin=f"plugin-{name}", distribution="made-up", version="1.2"))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up machine with three plugins, of which one lacks a package, and one is broken."""
    offers = {offer.value.name: offer for offer in (adapter("plain"), adapter("four-bit", "torch", "bitsandbytes>=9999"))}
    broken = BrokenPlugin(provider=Provider(plugin="bad", distribution="bad-dist", version="0.1"), error="no module named x")
    catalog = Catalog(methods=FrozenDict({"adapter": FrozenDict(offers)}), broken=(broken,), disabled=("off",))
    monkeypatch.setattr(catalog_module, "discover", lambda **_: catalog)
    monkeypatch.setattr(environment_module, "read_environment", lambda **_: MACHINE)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "not" / "yet"))


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, dict[str, Any]]]:
    def read() -> tuple[int, dict[str, Any]]:
        code = doctor.run(as_json=True)
        return code, json.loads(capsys.readouterr().out)

    return read


def test_report_is_one_document_and_the_core_works(report: Callable[[], Any], tmp_path: Path) -> None:
    code, document = report()
    assert (code, document["ok"], document["problems"]) == (ExitCode.DONE, True, [])
    assert document["machine"]["cores"] == 6
    assert document["cache"]["folder"] == str(tmp_path / "not" / "yet")
    assert document["cache"]["free"] > 0
    assert document["cache"]["writable"]
    assert document["cache"]["models"] == []
    assert not (tmp_path / "not").exists(), "looking makes no folder"
    assert {package["requirement"].split(">")[0] for package in document["packages"]} >= {"torch", "transformers", "peft"}


def test_precision_follows_from_the_probe(report: Callable[[], Any]) -> None:
    _, document = report()
    # bf16 is three times as fast: it is taken where the base is frozen, and mixed where it trains.
    assert document["precision"]["base_frozen"]["name"] == "bf16"
    assert document["precision"]["base_trained"]["name"] == "mixed"
    assert "300" in document["precision"]["base_frozen"]["why"]


def test_plugins_say_what_they_lack_and_what_to_type(report: Callable[[], Any]) -> None:
    _, document = report()
    plugins = {plugin["plugin"]: plugin for plugin in document["plugins"]}
    assert plugins["plugin-plain"]["available"]
    lacking = plugins["plugin-four-bit"]
    assert not lacking["available"]
    assert len(lacking["missing"]) == 1
    assert "bitsandbytes>=9999" in lacking["missing"][0]
    assert lacking["install"] == 'pip install "luthier[qlora]"'
    assert document["broken"][0]["error"] == "no module named x"
    assert document["disabled"] == ["off"]


@pytest.mark.parametrize("requirement", ["surely-not-installed>=1", "torch>=9999"])
def test_core_package_missing_or_too_old(
    report: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, requirement: str
) -> None:
    monkeypatch.setattr(doctor, "core_requirements", lambda: ["pydantic>=2", requirement])
    code, document = report()
    assert code == ExitCode.ENVIRONMENT
    (problem,) = document["problems"]
    assert requirement in problem["problem"]
    assert problem["fix"] == f'pip install "{requirement}"'
    assert [package["ok"] for package in document["packages"]] == [True, False]
    assert document["machine"]["cores"] == 6, "the rest is reported all the same"


def test_torch_that_does_not_start(report: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> Environment:
        raise OSError("libtorch_cpu.so: undefined symbol")

    monkeypatch.setattr(environment_module, "read_environment", fail)
    code, document = report()
    assert code == ExitCode.ENVIRONMENT
    assert document["machine"] is None
    assert document["precision"] is None
    assert "undefined symbol" in document["problems"][0]["problem"]


def test_report_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.run(as_json=False) == ExitCode.DONE
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Made-up 3000, 6 cores", "300 GFLOP/s", "needs packages", "broken", "disabled", "The core works"):
        assert words in text
    monkeypatch.setattr(doctor, "core_requirements", lambda: ["surely-not-installed>=1"])
    assert doctor.run(as_json=False) == ExitCode.ENVIRONMENT
    text = " ".join(capsys.readouterr().out.split())
    assert "problem surely-not-installed>=1 (not installed) fix: pip install" in text
    assert "The core works" not in text


def test_plugins_of_this_installation_are_listed(monkeypatch: pytest.MonkeyPatch, report: Callable[[], Any]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(environment_module, "read_environment", lambda **_: MACHINE)
    _, document = report()
    assert {"adapter: lora", "optimizer: adamw"} <= {label for plugin in document["plugins"] for label in plugin["offers"]}
