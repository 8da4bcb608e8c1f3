"""Which modules get an update, of which rank and scale; what else trains; and what of it cannot be, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core.config.validate import parse_options
from luthier.core.errors import ModelError, PlanRefused
from luthier.core.serial import to_plain
from luthier.plugins import dora, lora
from luthier.plugins.lora import LoraConfig


def adapted(model: Any) -> dict[str, Any]:
    """Layers with an update by their name in the base model."""
    return {
        name.removeprefix("base_model.model."): module for name, module in model.named_modules() if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": ("q_proj",)}, {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
        ({"target": ("*.0.self_attn.[qk]_proj",)}, {"0.self_attn.q_proj", "0.self_attn.k_proj"}),
        ({"target": ("mlp.down", "o_proj"), "layers": (-1,)}, {"1.mlp.down_proj", "1.self_attn.o_proj"}),
        (
            {"target": ("attn",), "exclude": ("attn.o", "k_proj"), "layers": (0,)},
            {"0.self_attn.q_proj", "0.self_attn.v_proj"},
        ),
    ],
)
def test_roles_names_patterns_exclusions_and_layers(kit: Any, options: dict[str, Any], expected: set[str]) -> None:
    model, _, _ = kit.attach("llama", rank=2, **options)
    assert {name.removeprefix("model.layers.") for name in adapted(model)} == expected


def test_ranks_and_scales_by_pattern(kit: Any) -> None:
    """The word that means the fewest modules decides; without alpha every update is scaled by 2."""
    ranks = {"attn": 2, "model.layers.1.self_attn.q_proj": 6}
    model, _, _ = kit.attach("llama", rank=4, rank_pattern=ranks, alpha_pattern={"mlp.down": 3.0})
    layers = adapted(model)
    found = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
    assert found["model.layers.0.self_attn.q_proj"] == (2, 2.0)
    assert found["model.layers.1.self_attn.q_proj"] == (6, 2.0)
    assert found["model.layers.0.mlp.up_proj"] == (4, 2.0)
    assert found["model.layers.0.mlp.down_proj"] == (4, 0.75)
    assert model.peft_config["default"].rank_pattern == {
        "model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 6, "k_proj": 2, "v_proj": 2, "o_proj": 2,
    }  # fmt: skip


def test_rslora_divides_by_the_root_of_the_rank(kit: Any) -> None:
    """Kalajdzievski 2023, arXiv:2312.03732."""
    model, _, _ = kit.attach("llama", rank=4, alpha=6, rslora=True, rank_pattern={"attn.q": 9})
    layers = adapted(model)
    assert layers["model.layers.0.mlp.up_proj"].scaling["default"] == 3.0
    assert layers["model.layers.0.self_attn.q_proj"].scaling["default"] == 2.0


def test_gpt2_names_that_mean_two_things(kit: Any) -> None:
    """gpt2 calls the output projections of attention and of the MLP c_proj: each gets its own rank."""
    model, _, _ = kit.attach("gpt2", rank=4, rank_pattern={"attn.o": 2})
    ranks = {name.partition(".0.")[2]: layer.r["default"] for name, layer in adapted(model).items() if ".0." in name}
    assert ranks == {"attn.c_attn": 4, "attn.c_proj": 2, "mlp.c_fc": 4, "mlp.c_proj": 4}


# ---- experts


def test_fused_experts_get_an_update_each(kit: Any) -> None:
    """The parameter that the experts compute with is W_e + s B_e A_e, for each expert on its own."""
    model, _, _ = kit.attach("mixtral", rank=3, target=("experts",))
    original, _ = kit.load("mixtral")
    kit.train(model)
    merged = lora.merge(model)
    changed = {}
    for name, parameter in original.named_parameters():
        other = merged.get_parameter(name)
        if ".experts." in name:
            changed[name] = [int(torch.linalg.matrix_rank((other - parameter)[expert], rtol=1e-3)) for expert in range(4)]
        else:
            assert torch.equal(other, parameter), name
    assert len(changed) == 4
    assert {rank for ranks in changed.values() for rank in ranks} == {3}


def test_experts_are_left_out_of_all(kit: Any) -> None:
    model, _, _ = kit.attach("mixtral", rank=2)
    assert {name.rpartition(".")[2] for name in adapted(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_experts_that_are_modules_are_linear_layers() -> None:
    """Jamba's older siblings and others hold each expert as modules of its own; here, a model made of such."""
    from luthier.core.contracts import Matrix
    from luthier.core.frozen import FrozenDict
    from luthier.core.profile import ArchitectureProfile, RoleGroup
    from luthier.plugins._peft.lora_layout import check

    group = RoleGroup(
        pattern="model.layers.*.mlp.experts.*.up", kind="linear", shape=(16, 8), in_features=8, out_features=16,
        layers=(0, 1), experts=4,
    )  # fmt: skip
    profile = ArchitectureProfile(
        model_type="toy", architecture="Toy", decoder="model.layers", layers=2, layer_classes=("Layer",), hidden_size=8,
        vocab_size=10, roles=FrozenDict({"mlp.experts": (group,)}),
    )  # fmt: skip
    config = LoraConfig(rank=2, target=("experts",), dropout=0.1)
    assert check(profile, config)
    predicted = lora.memory(profile, config)
    assert predicted.trainable == 8 * 2 * (8 + 16)
    assert predicted.matrices == (
        Matrix(role="mlp.experts", shape=(2, 8), count=8), Matrix(role="mlp.experts", shape=(16, 2), count=8)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (
            "llama",
            {"target": ("experts",)},
            "llama has no modules of role experts (expert weights); take target from: attn.q",
        ),
        ("llama", {"target": ("mixer",)}, "llama has no modules of role mixer"),
        ("llama", {"target": ("q_porj",)}, "did you mean `q_proj`?"),
        ("llama", {"target": ("norm",)}, "is a norm of llama, not a linear layer"),
        ("llama", {"target": ("attn",), "exclude": ("attn",)}, "nothing in llama is left to train"),
        ("llama", {"layers": (7,)}, "llama has no layers 7"),
        ("llama", {"rank_pattern": {"experts": 2}}, "rank_pattern: 'experts' means none of the modules that are adapted"),
        ("llama", {"target": ("attn",), "alpha_pattern": {"mlp": 2.0}}, "alpha_pattern: 'mlp' means none"),
        ("llama", {"bias": "all"}, "bias: llama has no biases"),
        ("llama", {"modules_to_save": ("embde",)}, "modules_to_save: no module of llama is called 'embde'"),
        ("llama", {"modules_to_save": ("q_proj",)}, "would train in whole and get an update as well"),
        ("llama", {"target": ("head",), "trainable_tokens": (3,)}, "leave head out of target"),
        ("llama", {"modules_to_save": ("embed",), "trainable_tokens": (3,)}, "in whole and by single rows"),
        ("mixtral", {"target": ("experts",), "dropout": 0.1}, "no dropout can act"),
        ("mixtral", {"target": ("attn", "experts"), "init": "pissa"}, "init pissa is made for linear layers"),
        ("mixtral", {"target": ("mlp.router",)}, "is a parameter of mixtral, not a linear layer"),
        ("mixtral", {"modules_to_save": ("mlp.router",)}, "is a parameter, not a module that could be copied"),
        ("gemma2", {"target": ("attn", "head")}, "shares its matrix with the embeddings"),
    ],
)
def test_refusals(kit: Any, kind: str, options: dict[str, Any], says: str) -> None:
    assert says in kit.refusal(kind, "lora", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": []}, "names no role"),
        ({"rslora": True}, "rslora needs alpha"),
        ({"rank": 0}, "at least 1"),
        ({"rank_pattern": {"attn": 0}}, "greater than 0"),
        ({"rank_pattern": {"attn": "four"}}, "must be a whole number"),
        ({"continue_from": "x", "init": "pissa"}, "leave one out"),
        ({"svd_iterations": 4}, "svd_iterations belongs to init pissa or loftq, and init is default"),
        ({"init": "pissa", "init_batches": 2}, "init_batches belongs to init eva or corda"),
        ({"init": "eva", "corda_method": "kpm"}, "corda_method belongs to init corda"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanRefused, match=says):
        parse_options(LoraConfig, options, where="adapter")


def test_options_round_trip() -> None:
    config = LoraConfig(rank_pattern={"attn": 2}, trainable_tokens=(3, "<a>"), layers=(0, -1), stack_on=("x",), alpha=2)
    assert parse_options(LoraConfig, to_plain(config), where="adapter") == config


# ---- what is predicted


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"rank_pattern": {"attn": 2}},
    {"target": ("attn",), "layers": (1,)},
    {"modules_to_save": ("embed",)},
    {"modules_to_save": ("head", "norm")},
    {"trainable_tokens": (3, 5, 5, 9)},
    {"bias": "all"},
    {"bias": "lora_only", "target": ("attn",)},
    {"bias": "all", "modules_to_save": ("norm",)},
    {"target": ("attn", "experts")},
    {"init": "pissa"},
)


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi3", "mixtral", "qwen3"])
def test_what_trains_is_what_was_predicted(kit: Any, name: str, kind: str) -> None:
    """Every option: the number of trained parameters, how many of them are new, and every one's shape."""
    plugin: Any = {"lora": lora, "dora": dora}[name]
    checked = 0
    for options in OPTIONS:
        if name == "dora" and "init" in options:
            continue
        model, profile = kit.load(kind)
        adapter = kit.adapter(name)
        config = adapter.config(rank=4, **options)
        if not adapter.supports(profile, kit.here, config):
            continue
        before = sum(parameter.numel() for parameter in model.parameters())
        attached = plugin.attach(model, profile, config, kit.context)
        after = sum(parameter.numel() for parameter in attached.parameters())
        predicted, trained = adapter.memory(profile, config), kit.trained(attached)
        assert predicted.trainable == sum(parameter.numel() for parameter in trained.values()), options
        assert predicted.added == after - before, options
        shapes = sorted(tuple(parameter.shape) for parameter in trained.values())
        assert shapes == sorted(matrix.shape for matrix in predicted.matrices for _ in range(matrix.count)), options
        checked += 1
    assert checked >= 6


def test_frozen_factors_are_counted(kit: Any, tmp_path: Any) -> None:
    _, profile = kit.load("llama")
    plain, pissa = (lora.memory(profile, LoraConfig(rank=4, init=init)) for init in ("default", "pissa"))
    assert pissa.constant - plain.constant == 4 * plain.trainable
    model, _, _ = kit.attach("llama", rank=8, target=("attn",))
    folder = kit.save(model, tmp_path / "below")
    below = lora.memory(profile, LoraConfig(rank=8, target=("attn",))).trainable
    assert lora.memory(profile, LoraConfig(rank=4, stack_on=(str(folder),))).constant == 4 * below
    assert lora.memory(profile, LoraConfig(rank=4, stack_on=("nowhere",))).constant == 0


# ---- tokens


def test_only_the_named_rows_train(kit: Any) -> None:
    """Token text and ids alike; in the head too, where it has a matrix of its own."""
    model, _, _ = kit.attach("llama", trainable_tokens=(7, "<|user|>"))
    user = kit.context.tokenizer.convert_tokens_to_ids("<|user|>")
    assert model.peft_config["default"].trainable_token_indices == {"model.embed_tokens": [7, user], "lm_head": [7, user]}
    original, _ = kit.load("llama")
    merged = lora.merge(kit.train(model))
    for one, other in (
        (merged.get_input_embeddings(), original.get_input_embeddings()),
        (merged.get_output_embeddings(), original.get_output_embeddings()),
    ):
        rows = (one.weight != other.weight).any(dim=1).nonzero().flatten().tolist()
        # A row of the embeddings moves where its token was read; those of the head always do.
        assert set(rows) <= {7, user}
        assert rows == [7, user] or one is merged.get_input_embeddings()


def test_tokens_that_are_not_there(kit: Any) -> None:
    from luthier.core.contracts import NothingPatched
    from luthier.core.errors import ConfigError

    with pytest.raises(ConfigError, match="'<lost>' is no token of this model"):
        kit.attach("llama", trainable_tokens=("<lost>",))
    with pytest.raises(ConfigError, match="token 999 is beyond the 263 rows"):
        kit.attach("llama", trainable_tokens=(999,))
    with pytest.raises(NothingPatched, match="no patch of this run added a token"):
        kit.attach("llama", new_tokens=True)


def test_new_tokens_are_those_that_patches_added(kit: Any) -> None:
    import copy
    import dataclasses

    tokenizer = copy.deepcopy(kit.context.tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    model, profile = kit.load("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    context = dataclasses.replace(kit.context, tokenizer=tokenizer)
    adapted_model: Any = lora.attach(model, profile, LoraConfig(new_tokens=True), context)
    assert adapted_model.peft_config["default"].trainable_token_indices["lm_head"] == [263, 264]


def test_a_saved_adapter_that_cannot_be_read(tmp_path: Any) -> None:
    from luthier.plugins._peft.saved import read_saved

    with pytest.raises(ModelError, match="no saved adapter is here"):
        read_saved(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage garbage garbage")
    with pytest.raises(ModelError, match="the weights of the adapter cannot be read"):
        read_saved(str(tmp_path))
