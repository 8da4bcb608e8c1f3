"""`rope_scaling`: the model that transformers would have built from a configuration with these rope parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.context import BuildContext
from luthier.core.environment import Environment
from luthier.core.errors import ModelError
from luthier.core.plan import Precision
from luthier.plugins import rope_scaling
from luthier.plugins.rope_scaling import RopeScalingConfig

from .conftest import SMALL
from .running import configuration, resumed_equals_straight, train

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
ROTATING = ("llama", "qwen3", "gemma2", "mixtral")
TYPES: dict[str, tuple[RopeScalingConfig, dict[str, Any]]] = {
    "linear": (RopeScalingConfig(type="linear", factor=4), {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (RopeScalingConfig(type="dynamic", factor=4), {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": (
        RopeScalingConfig(type="yarn", factor=4, beta_fast=16, attention_factor=1.2),
        {
            "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "attention_factor": 1.2,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama3": (
        RopeScalingConfig(factor=4, type="llama3", low_freq_factor=2),
        {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}  # fmt: skip


def folder_of(tiny_folder: Callable[..., Path], model_type: str, **changes: Any) -> Path:
    return tiny_folder(model_type, **SMALL.get(model_type, {}) | {"max_position_embeddings": 64} | changes)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    # The grouped product of fused experts has no float64.
    options = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ROTATING)
@pytest.mark.parametrize("name", TYPES)
def test_logits_are_those_of_a_model_built_so(
    name: str, kind: str, dtype: torch.dtype, tiny_folder: Callable[..., Path]
) -> None:
    from luthier.registry.detect import detect

    options, parameters = TYPES[name]
    folder = folder_of(tiny_folder, kind)
    model, profile = loaded(folder, dtype), detect(folder)
    assert rope_scaling.supports(profile, HERE, options)
    ids = torch.randint(0, 250, (2, 200), generator=torch.Generator().manual_seed(1))
    written = json.loads((folder / "config.json").read_text())
    edited = written | {
        "rope_parameters": parameters | {"rope_theta": written["rope_parameters"]["rope_theta"]},
        "max_position_embeddings": 64 if name == "dynamic" else 256,
    }
    if kind == "mixtral":  # its configuration leaves it null, and transformers' yarn and dynamic then fail
        edited["head_dim"] = 16
    (folder / "config.json").write_text(json.dumps(edited))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        undo = rope_scaling.apply(model, profile, options)
        scaled = model(input_ids=ids).logits
        assert torch.equal(scaled, loaded(folder, dtype)(input_ids=ids).logits)
        assert not torch.equal(scaled, before)
        assert {key: value for key, value in model.config.to_dict().items() if key != "dtype"} == {
            key: value for key, value in loaded(folder).config.to_dict().items() if key != "dtype"
        }
        undo()
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config.max_position_embeddings == 64


def test_frequencies_are_the_papers(tiny_folder: Callable[..., Path]) -> None:
    """Written out from the papers, for theta 10,000, 16 features a head, context 64, factor 4."""
    from luthier.registry.detect import detect

    folder = folder_of(tiny_folder, "llama")
    plain = [10_000 ** (-2 * i / 16) for i in range(8)]
    turns = [64 * frequency / (2 * math.pi) for frequency in plain]  # over the original context

    def ramp(value: float, low: float, high: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0)

    # YaRN as its authors' code has it: the ramp runs over the pair's index, between the (whole) indices that turn so often.
    fast, slow = (16 * math.log(64 / (beta * 2 * math.pi)) / (2 * math.log(10_000)) for beta in (32, 1))
    low, high = max(math.floor(fast), 0), min(math.ceil(slow), 15)
    expected = {
        "linear": [frequency / 4 for frequency in plain],
        "yarn": [frequency / 4 * (mix := ramp(i, low, high)) + frequency * (1 - mix) for i, frequency in enumerate(plain)],
        "llama3": [
            frequency * (keep := ramp(turn, 1, 4)) + frequency / 4 * (1 - keep)
            for frequency, turn in zip(plain, turns, strict=True)
        ],
    }
    assert expected["yarn"] != expected["linear"] != expected["llama3"]
    for name, wanted in expected.items():
        model = loaded(folder)
        rope_scaling.apply(model, detect(folder), RopeScalingConfig(type=name, factor=4))
        assert model.model.rotary_emb.inv_freq.tolist() == pytest.approx(wanted, rel=1e-5)
    yarn = loaded(folder)
    rope_scaling.apply(yarn, detect(folder), RopeScalingConfig(type="yarn", factor=4))
    assert yarn.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_dynamic_depends_on_its_own_batch_only(tiny_folder: Callable[..., Path]) -> None:
    """transformers alone keeps the frequencies of the longest batch so far: a resumed run would go on differently."""
    from luthier.registry.detect import detect

    folder = folder_of(tiny_folder, "llama")
    long, medium, short = (torch.randint(0, 250, (1, length)) for length in (200, 100, 30))
    model = loaded(folder)
    with torch.no_grad():
        plain_short = model(input_ids=short).logits
        rope_scaling.apply(model, detect(folder), TYPES["dynamic"][0])
        first = model(input_ids=medium).logits
        model(input_ids=long)
        assert torch.equal(model(input_ids=medium).logits, first)
        assert torch.equal(model(input_ids=short).logits, plain_short)


def test_models_with_a_rope_for_each_kind_of_layer(tiny_folder: Callable[..., Path]) -> None:
    """gemma3: full attention is scaled, as transformers itself does with such a configuration; the sliding window is not."""
    from luthier.registry.detect import detect

    folder = folder_of(tiny_folder, "gemma3_text", head_dim=16, layer_types=["sliding_attention", "full_attention"])
    model, profile = loaded(folder), detect(folder)
    options = TYPES["yarn"][0]
    assert rope_scaling.supports(profile, HERE, options)
    before = model.config.to_dict()["rope_parameters"]
    rope_scaling.apply(model, profile, options)
    after = model.config.to_dict()["rope_parameters"]
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"]["rope_type"] == "yarn"
    model.save_pretrained(folder)
    ids = torch.randint(0, 250, (2, 200))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, loaded(folder)(input_ids=ids).logits)


def test_what_is_not_scaling_stays(tiny_folder: Callable[..., Path]) -> None:
    """glm rotates half of each head."""
    from luthier.registry.detect import detect

    folder = folder_of(tiny_folder, "glm", head_dim=16)
    model = loaded(folder)
    half = model.config.rope_parameters["partial_rotary_factor"]
    assert half == 0.5
    rope_scaling.apply(model, detect(folder), RopeScalingConfig(type="linear", factor=2))
    assert model.config.rope_parameters["partial_rotary_factor"] == half
    assert len(model.model.rotary_emb.inv_freq) == 4


def test_it_says_no(load: Load, tiny_folder: Callable[..., Path]) -> None:
    from luthier.registry.detect import detect

    options = RopeScalingConfig(factor=2)
    assert "no rotary" in rope_scaling.supports(load("gpt2")[1], HERE, options).reason
    assert "longrope" in rope_scaling.supports(load("phi3")[1], HERE, options).reason
    scaled = folder_of(tiny_folder, "llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    profile = detect(scaled)
    refusal = rope_scaling.supports(profile, HERE, options)
    assert "already (linear)" in refusal.reason
    assert "override" in refusal.fix
    override = RopeScalingConfig(factor=4, override=True, original_context=32)
    assert rope_scaling.supports(profile, HERE, override)
    model = loaded(scaled)
    rope_scaling.apply(model, profile, override)
    assert model.config.rope_parameters == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4,
    }  # fmt: skip
    assert model.config.max_position_embeddings == 128


def test_a_configuration_that_refuses_leaves_the_model_alone(load: Load, ids: torch.Tensor) -> None:
    """phi3, had the plan not refused it: `yarn` would be read back as longrope, `linear` not at all."""
    model, profile = load("phi3")
    before = model.config.to_dict()
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    for name in ("yarn", "linear"):
        with pytest.raises(ModelError, match="phi3"):
            rope_scaling.apply(model, profile, RopeScalingConfig(type=name, factor=2))
        assert model.config.to_dict() == before
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "linear", "beta_fast": 32.0}, "belongs to the type yarn"),
        ({"low_freq_factor": 1.0}, "belongs to the type llama3"),
        ({"override": True}, "original_context"),
        ({"beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast"),
        ({"type": "llama3", "low_freq_factor": 4.0}, "high_freq_factor"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RopeScalingConfig(factor=2, **options)


def test_the_notice_says_how_to_load_the_base_of_an_adapter(load: Load) -> None:
    model, profile = load("llama")
    said: list[str] = []
    context = BuildContext(
        precision=Precision(name="fp32", weights="float32", compute="float32", why=""), notice=said.append
    )
    rope_scaling.apply(model, profile, RopeScalingConfig(factor=2), context)
    assert "to 1024 tokens from 512" in said[0]
    assert f"rope_parameters={model.config.rope_parameters}" in said[0]
    assert "max_position_embeddings=1024" in said[0]


@pytest.mark.parametrize("model_type", ROTATING)
def test_a_run_saves_it_and_plain_transformers_loads_it(
    model_type: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A whole model by its config.json; an adapter on a base that is loaded with the two arguments."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import luthier

    folder = folder_of(tiny_folder, model_type, num_hidden_layers=1)
    ids = torch.randint(0, 250, (1, 200), generator=torch.Generator().manual_seed(0))
    patch = {"use": "rope_scaling", "type": "linear", "factor": 4.0}
    whole = configuration(folder, tmp_path, [patch], adapter="full", output=str(tmp_path / "whole"))
    train(whole)
    model = loaded(tmp_path / "whole")
    assert model.config.max_position_embeddings == 256
    assert model.config.rope_parameters["factor"] == 4.0
    train(configuration(folder, tmp_path, [patch]))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`rope_scaling`" in card
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, rope_parameters=model.config.rope_parameters, max_position_embeddings=256
    )
    tuned = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    luthier.merge(tmp_path / "run", tmp_path / "merged")
    with torch.no_grad():
        difference = tuned(input_ids=ids).logits - loaded(tmp_path / "merged")(input_ids=ids).logits
        assert difference.abs().max() < 1e-4
        unscaled = PeftModel.from_pretrained(loaded(folder), tmp_path / "run").eval()
        assert (tuned(input_ids=ids).logits - unscaled(input_ids=ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["yarn", "dynamic"])
def test_it_resumes_to_the_same_bits(name: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = folder_of(tiny_folder, "llama", num_hidden_layers=1)
    patch = {"use": "rope_scaling", "type": name, "factor": 4.0}
    assert resumed_equals_straight(configuration(folder, tmp_path, [patch]))


def test_gpt2_is_refused_by_the_plan(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    import luthier
    from luthier.core.errors import PlanRefused

    config = configuration(tiny_folder("gpt2", **SMALL["gpt2"]), tmp_path, [{"use": "rope_scaling", "factor": 2.0}])
    with pytest.raises(PlanRefused, match="no rotary position embeddings"):
        luthier.plan(luthier.load_config(config))
