"""`llama_pro`: the model starts unchanged with more layers, only these train, and it stays one that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.contracts import NothingPatched
from luthier.core.environment import Environment
from luthier.core.errors import ModelError
from luthier.core.merging import merge_run
from luthier.plugins import llama_pro
from luthier.plugins.llama_pro import LlamaProConfig
from luthier.plugins.llama_pro.layout import templates
from luthier.registry.catalog import discover
from luthier.registry.detect import detect
from tests.methods.conftest import SMALL
from tests.methods.running import configuration, resumed_equals_straight, train

HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
LAYERS = 4


@pytest.fixture
def deep(tiny_folder: Callable[..., Path]) -> Callable[..., tuple[Any, Any]]:
    """`deep("gemma2") -> (model, profile)` with four layers, vectors not at zero and one."""
    from transformers import AutoModelForCausalLM

    def make(kind: str, **changes: Any) -> tuple[Any, Any]:
        folder = tiny_folder(kind, **SMALL.get(kind, {}) | {"num_hidden_layers": LAYERS, "n_layer": LAYERS} | changes)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model, detect(folder)

    return make


Deep = Callable[..., tuple[Any, Any]]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


def shake(model: Any) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


def test_new_layers_stand_where_the_paper_puts_them() -> None:
    """Section 3.2: 32 layers, 8 groups of 4, one new block on top of each."""
    assert templates(32, 8) == (3, 7, 11, 15, 19, 23, 27, 31)
    assert templates(30, 4) == (6, 14, 21, 29)
    assert templates(4, 4) == (0, 1, 2, 3)
    assert templates(5, 1) == (4,)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_model_starts_unchanged_and_only_new_layers_train(kind: str, blocks: int, deep: Deep, ids: Any) -> None:
    model, profile = deep(kind)
    config = LlamaProConfig(blocks=blocks)
    assert llama_pro.supports(profile, HERE, config)
    before, parameters = logits(model, ids), sum(parameter.numel() for parameter in model.parameters())
    grown = llama_pro.attach(model, profile, config)
    assert torch.equal(logits(grown, ids), before)
    layers = grown.get_submodule(profile.decoder)
    assert len(layers) == LAYERS + blocks == grown.config.num_hidden_layers
    new = [number + place + 1 for place, number in enumerate(templates(LAYERS, blocks))]
    trained = {name for name, parameter in grown.named_parameters() if parameter.requires_grad}
    places = tuple(f"{profile.decoder}.{number}." for number in new)
    assert trained == {name for name, _ in grown.named_parameters() if name.startswith(places)}
    terms = llama_pro.memory(profile, config)
    added = sum(parameter.numel() for parameter in grown.parameters()) - parameters
    assert terms.trainable == terms.added == added == sum(matrix.size * matrix.count for matrix in terms.matrices)
    assert terms.activation_scale == pytest.approx((LAYERS + blocks - new[0]) / LAYERS)


def test_saved_it_is_a_plain_model(kind: str, deep: Deep, ids: Any, tmp_path: Path) -> None:
    """Plain transformers gives the same logits, and the same text with and without the key-value cache."""
    from transformers import AutoModelForCausalLM

    model, profile = deep(kind)
    grown = llama_pro.attach(model, profile, LlamaProConfig(blocks=3))
    shake(grown)
    grown.save_pretrained(tmp_path)
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(plain.eval(), ids), logits(grown, ids))
    texts = [
        one.generate(ids[:1, :4], max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=cached)
        for one in (grown, plain)
        for cached in (True, False)
    ]
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_layers_keep_their_kind_of_attention(deep: Deep, tmp_path: Path, ids: Any) -> None:
    """Gemma 2 alternates windows with full attention: a new layer is of the kind of the one that it follows."""
    model, profile = deep("gemma2", sliding_window=4)
    grown = llama_pro.attach(model, profile, LlamaProConfig(blocks=2))
    window, full = "sliding_attention", "full_attention"
    assert grown.config.layer_types == [window, full, full, window, full, full]
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == [0, 1, 2, 3, 4, 5]
    assert [layer.self_attn.sliding_window for layer in grown.model.layers] == [4, None, None, 4, None, None]
    grown.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 6


def test_copies_go_by_the_configuration_of_the_model(deep: Deep) -> None:
    """What is set there later, such as the attention kernel, holds for new layers as well."""
    model, profile = deep("llama")
    grown = llama_pro.attach(model, profile, LlamaProConfig(blocks=2))
    assert len({id(layer.self_attn.config) for layer in grown.model.layers}) == 1


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_it_starts_to_learn_gently(kind: str, deep: Deep, ids: Any) -> None:
    """One small step of Adam moves the logits a little.

    Gemma 2 normalises what attention and MLP put out: with zero projections, as for Llama, its gradient would be that of
    1 / sqrt(eps) and the first step a jump, which is measured here as well.
    """

    def moved(model: Any) -> tuple[float, float]:
        before = logits(model, ids)
        optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        optimizer.step()
        return float((logits(model, ids) - before).abs().max() / before.abs().max()), norm

    model, profile = deep(kind)
    step, gradient = moved(llama_pro.attach(model, profile, LlamaProConfig(blocks=1)))
    assert step < 5e-3
    if kind == "gemma2":
        model, profile = deep(kind)
        literal = llama_pro.attach(model, profile, LlamaProConfig(blocks=1))
        new, old = literal.model.layers[-1], literal.model.layers[-2]
        new.load_state_dict(old.state_dict())
        for projection in (new.self_attn.o_proj, new.mlp.down_proj):
            projection.weight.data.zero_()
        jump, steep = moved(literal)
        assert jump > 100 * step
        assert steep > 100 * gradient


def test_what_it_cannot_do_is_refused(deep: Deep) -> None:
    from transformers import MambaConfig

    _, profile = deep("llama")
    refusal = llama_pro.supports(profile, HERE, LlamaProConfig(blocks=5))
    assert refusal.kind == "no"
    assert "blocks" in refusal.reason
    refusal = llama_pro.supports(detect(MambaConfig(num_hidden_layers=2)), HERE, LlamaProConfig())
    assert refusal.kind == "no"
    assert "mixer" in refusal.reason


def test_a_model_whose_configuration_cannot_say_it_is_an_error(deep: Deep) -> None:
    """GPT-2 with scores scaled by the layer's number, or a layer that somebody has changed by hand."""
    model, profile = deep("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match=r"attn\.scaling is 0\.125 and not 0\.25"):
        llama_pro.attach(model, profile, LlamaProConfig(blocks=4))
    model, profile = deep("llama")
    model.model.layers[3].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(ModelError, match="logits differ"):
        llama_pro.attach(model, profile, LlamaProConfig())


def test_a_decoder_that_is_not_where_it_should_be(deep: Deep) -> None:
    model, profile = deep("llama")
    del model.model.layers[3]
    with pytest.raises(NothingPatched, match=r"model\.layers"):
        llama_pro.attach(model, profile, LlamaProConfig())


def test_a_run_resumes_bit_for_bit_and_merges(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = configuration(
        tiny_folder("llama"),
        tmp_path,
        ["checkpointing"],
        adapter={"use": "llama_pro", "blocks": 2},
        optimizer={"use": "adamw", "lr": 1e-3},
    )
    assert resumed_equals_straight(config)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["num_hidden_layers"] == 4
    assert saved["use_cache"]
    report = merge_run(tmp_path / "run", tmp_path / "merged", discover())
    assert report.difference == 0.0
    assert report.parameters == sum(tensor.numel() for tensor in _whole(tmp_path / "merged").values())


def test_mixtral_runs_in_bfloat16(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = configuration(tiny_folder("mixtral"), tmp_path, [], adapter="llama_pro", precision="bf16")
    results, _ = train(config)
    assert results["trained_parameters"] == 2 * 64 * 64 + 2 * 32 * 64 + 8 * (3 * 64 * 128) + 8 * 64 + 2 * 64


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
