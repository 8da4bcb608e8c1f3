"""A plan with an isolating patch runs in a clean process, where that patch is imported before transformers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.frozen import FrozenDict

PLUGIN = """
import os, sys
from luthier.core.contracts import ModelPatch
from luthier.core.hookspecs import hookimpl

def prepare():
    early = [name for name in ("transformers", "peft", "trl") if name in sys.modules]
    with open(os.environ["PROOF"], "w") as file:
        file.write(f"{os.getpid()} {','.join(early) or 'none'}")

def apply(model, profile, config):
    return lambda: None

@hookimpl
def luthier_model_patches():
    yield ModelPatch(name="hermit", summary="Wants to be first.", apply=apply, isolate=True, prepare=prepare)
"""


@pytest.fixture
def hermit(tmp_path: Path) -> Path:
    """A folder that, on PYTHONPATH, is an installed plugin named hermit."""
    site = tmp_path / "site"
    info = site / "hermit-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "hermit.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hermit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[luthier.plugins]\nhermit = hermit\n")
    return site


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Path:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        textwrap.dedent(f"""
        model: {tiny_folder("llama")}
        data: {{train: [rows.jsonl], max_length: 64}}
        patches: [hermit]
        train: {{max_steps: 2, batch_tokens: 64}}
        output: {tmp_path / "run"}
        """)
    )
    return path


def train(
    config: Path, site: Path, tmp_path: Path, *words: str, command: str = "-m luthier"
) -> subprocess.CompletedProcess[str]:
    """`command` "luthier" is the installed script, which does not look for modules in the current folder."""
    import os

    environment = os.environ | {
        "PYTHONPATH": str(site),
        "PROOF": str(tmp_path / "proof"),
        "LUTHIER_CACHE": str(tmp_path / "cache"),
    }
    start = [str(Path(sys.executable).with_name("luthier"))] if command == "luthier" else [sys.executable, *command.split()]
    return subprocess.run(
        [*start, "train", str(config), *words], capture_output=True, text=True, check=False, env=environment
    )


def test_isolated_patch_comes_first_in_a_process_of_its_own(hermit: Path, config: Path, tmp_path: Path) -> None:
    done = train(config, hermit, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    _, early = (tmp_path / "proof").read_text().split()
    assert early == "none"
    assert json.loads(done.stdout)["steps"] == 2
    assert "step 2/2" in done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_an_error_in_the_worker_keeps_its_message_and_code(hermit: Path, config: Path, tmp_path: Path) -> None:
    assert train(config, hermit, tmp_path).returncode == 0
    done = train(config, hermit, tmp_path)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_does_not_outlive_a_run_that_is_stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C is a KeyboardInterrupt in the parent; the worker, in a session of its own, never hears it."""
    from luthier import worker
    from luthier.core.plan import ModelReference, Plan, Precision
    from luthier.core.profile import ArchitectureProfile

    started: list[subprocess.Popen[bytes]] = []

    class Sleeper(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, words: list[str], **options: object) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)  # type: ignore[call-overload]
            started.append(self)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.subprocess, "Popen", Sleeper)
    monkeypatch.setattr(worker, "_listen", interrupted)
    plan = Plan(
        model=ModelReference(name="m", path="m", kind="folder"),
        profile=ArchitectureProfile(
            model_type="m", architecture="M", decoder="", layers=1, layer_classes=(), hidden_size=1, vocab_size=1
        ),
        steps=(),
        precision=Precision(name="fp32", weights="float32", compute="float32", why=""),
        config=FrozenDict(),
    )
    with pytest.raises(KeyboardInterrupt):
        worker.run_in_worker(plan, observers=(), resume=False, overwrite=False)
    assert started[0].returncode == -signal.SIGKILL


def test_the_worker_imports_nothing_from_the_folder_the_user_stands_in(
    hermit: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands = tmp_path / "stands"
    stands.mkdir()
    (stands / "colorsys.py").write_text("raise RuntimeError('imported from where the user stands')")
    (hermit / "hermit.py").write_text("import colorsys\n" + PLUGIN)
    monkeypatch.chdir(stands)
    done = train(config, hermit, tmp_path, command="luthier")
    assert done.returncode == 0, done.stderr
