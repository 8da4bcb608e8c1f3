"""A plan with an isolating patch runs in a clean process, where that patch is imported before transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

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


def train(config: Path, site: Path, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = os.environ | {
        "PYTHONPATH": str(site),
        "PROOF": str(tmp_path / "proof"),
        "LUTHIER_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "luthier", "train", str(config), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


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
