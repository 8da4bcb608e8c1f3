"""A third party's distribution in a fresh environment: a config selects it, it trains, saves and reloads."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PLUGIN = Path(__file__).parents[1] / "external_plugin"
ROWS = [
    {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 3}]}
    for word in "abcdefgh"
]
HELD_OUT = [{"messages": [{"role": "user", "content": "say z"}, {"role": "assistant", "content": "zzz"}]}]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`fresh("-m", "luthier", ...)` runs Python with Luthier's wheel and the plugin, both installed by pip.

    Dependencies come from the environment that the tests run in, by a path file: torch is too big to install once more.
    The path file does not run the editable install's own: this `luthier` is the wheel.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LUTHIER"))}
    environment |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [python, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*install, str(wheel))
    purelib = Path(run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (purelib / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    # A copy, because setuptools leaves its build folder beside the sources.
    source = shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    run(*install, str(source))
    shutil.copyfile(PLUGIN / "contracts.py", folder / "contracts.py")
    where = run("-c", "import luthier, luthier.core; print(luthier.__file__, luthier.core.__file__)").stdout.split()
    assert all(str(folder) in path for path in where), "the wheel is what is tested, not the checkout"
    return run


@pytest.fixture(scope="module")
def trained(fresh: Run, tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run: its folders, its JSON report, and its metrics."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_folder("llama")
    for name, rows in (("train", ROWS), ("eval", HELD_OUT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "model": str(model),
        "data": {"train": ["train.jsonl"], "eval": ["eval.jsonl"], "max_length": 128},
        "stage": "sft",
        "adapter": "ia3",
        "optimizer": {"use": "signed_momentum", "lr": 0.05, "schedule": "constant", "warmup": 0},
        "precision": "fp32",
        "train": {"epochs": 12, "batch_tokens": 512, "seed": 1},
        "output": str(folder / "out"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = fresh("-m", "luthier", "train", str(folder / "config.yaml"), "--json")
    lines = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "model": model,
        "output": folder / "out",
        "report": json.loads(done.stdout),
        "metrics": [json.loads(line) for line in lines],
    }


def test_it_is_listed_and_explained(fresh: Run) -> None:
    report = json.loads(fresh("-m", "luthier", "methods", "--json").stdout)
    theirs = {
        method["name"]: method for method in report["methods"] if method["provider"]["distribution"] == "luthier-ia3-lion"
    }
    assert set(theirs) == {"ia3", "signed_momentum"}
    assert theirs["ia3"]["available"]
    assert report["broken"] == []
    explained = json.loads(fresh("-m", "luthier", "explain", "signed_momentum.beta2", "--json").stdout)
    assert explained["entries"][0]["facts"]["default"] == "0.99"


def test_it_keeps_the_contracts_of_the_kit(fresh: Run) -> None:
    """The third party subclasses the contracts that Luthier ships; one that its method breaks is found."""
    kit = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "contracts.py")
    report = fresh(*kit).stdout
    passed = int(re.findall(r"(\d+) passed", report)[0])
    assert passed > 50, report
    assert "skipped" not in report, report
    false = "import luthier_ia3_lion as plugin; plugin.memory = lambda *_: plugin.MemoryTerms(trainable=1, added=1)"
    words = [*kit[2:], "-k", "TestIa3 and declared and llama"]
    broken = fresh("-c", f"import pytest; {false}; raise SystemExit(pytest.main({words!r}))", check=False)
    assert broken.returncode == 1, broken.stdout
    assert "parameters train, memory() declares 1" in broken.stdout


def test_it_trains(trained: dict[str, Any]) -> None:
    plan = json.loads((trained["output"] / "plan.json").read_text(encoding="utf-8"))
    steps = {step["slot"]: (step["method"], step["provider"]) for step in plan["steps"]}
    assert steps["adapter"] == ("ia3", "luthier-ia3-lion 0.1.0")
    assert steps["optimizer"] == ("signed_momentum", "luthier-ia3-lion 0.1.0")
    losses = [line["loss"] for line in trained["metrics"] if line["event"] == "step"]
    assert len(losses) == 12, "the eight rows fit into one batch"
    assert losses[-1] < losses[0] - 0.05


def test_plain_peft_loads_what_it_saved(trained: dict[str, Any]) -> None:
    """Against IA3's own formula on the base weights (scaled rows of k and v, scaled columns of down), in float64."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    def base() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(trained["model"], dtype=torch.float64).eval()

    vectors = load_file(trained["output"] / "adapter_model.safetensors")
    assert len(vectors) == 3 * 2, "k, v and down of two layers"
    expected = base()
    for name, vector in vectors.items():
        module = expected.get_submodule(name.removeprefix("base_model.model.").partition(".ia3_l")[0])
        with torch.no_grad():
            module.weight.mul_(vector.double())

    loaded = PeftModel.from_pretrained(base(), trained["output"], autocast_adapter_dtype=False).eval()
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        reference, plain, got = expected(ids).logits, base()(ids).logits, loaded(ids).logits
    torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, plain, atol=1e-3), "the run has moved the vectors"


def test_what_was_saved_is_what_was_trained(trained: dict[str, Any]) -> None:
    """The held-out loss that the run measured in memory, again from the saved files with PEFT and transformers alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained["output"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained["model"]), trained["output"]).eval()
    encoded = tokenizer.apply_chat_template(
        HELD_OUT[0]["messages"], return_assistant_tokens_mask=True, return_dict=True, return_tensors="pt"
    )
    ids, mask = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).bool().reshape(encoded["input_ids"].shape)
    with torch.no_grad():
        logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][mask[:, 1:]].double(), ids[:, 1:][mask[:, 1:]])
    assert trained["report"]["eval_loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_a_model_without_the_roles_is_refused_by_the_plugin_itself(fresh: Run, tiny_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    model = tiny_folder("gpt2", n_embd=64, n_layer=2, n_head=4)
    words = [f"model={model}", f"data.train=[{tmp_path / 'train.jsonl'}]", f"output={tmp_path / 'out'}"]
    (tmp_path / "config.yaml").write_text("adapter: ia3\noptimizer: signed_momentum\n", encoding="utf-8")
    done = fresh("-m", "luthier", "plan", str(tmp_path / "config.yaml"), *words, check=False)
    assert done.returncode == 2
    assert "gpt2 has no attn.k, attn.v" in done.stderr
    assert "take adapter: lora" in done.stderr
