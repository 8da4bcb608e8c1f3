"""What detection must not guess: made-up architectures with strange names, shapes and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.extensions import ArchitectureFamily
from luthier.core.profile import ArchitectureProfile
from luthier.registry.detect import detect

HIDDEN, HEADS, INNER, VOCAB = 32, 4, 48, 64


class OddConfig(PreTrainedConfig):
    model_type = "odd"

    def __init__(self, **fields: Any) -> None:
        self.hidden_size, self.num_attention_heads, self.vocab_size = HIDDEN, HEADS, VOCAB
        super().__init__(**fields)


class OddAttention(nn.Module):
    def __init__(self, names: dict[str, int], head_dim: int | None = HIDDEN // HEADS) -> None:
        super().__init__()
        if head_dim:
            self.head_dim = head_dim
        for name, size in names.items():
            self.add_module(name, nn.Linear(HIDDEN, size, bias=False))


class OddMLP(nn.Module):
    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (size_in, size_out) in sizes.items():
            self.add_module(name, nn.Linear(size_in, size_out))


def attention(**names: int) -> Callable[[], nn.Module]:
    sizes = names or {"q_proj": HIDDEN, "k_proj": HIDDEN, "v_proj": HIDDEN, "o_proj": HIDDEN}
    return lambda: OddAttention(sizes)


def mlp(**sizes: tuple[int, int]) -> Callable[[], nn.Module]:
    return lambda: OddMLP(**(sizes or {"up_proj": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)}))


class OddModel(PreTrainedModel):
    """Two layers out of the given parts, with embeddings and a head."""

    config_class = OddConfig

    def __init__(self, parts: dict[str, Callable[[], nn.Module]]) -> None:
        super().__init__(OddConfig())
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(nn.ModuleDict({name: make() for name, make in parts.items()}) for _ in range(2))
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def look(
    families: tuple[ArchitectureFamily, ...] = (), config: Any = None, **parts: Callable[[], nn.Module]
) -> ArchitectureProfile:
    with torch.device("meta"):
        model = OddModel({"self_attn": attention(), "mlp": mlp()} | parts)
    return detect(model, families=families)


def unclassified(profile: ArchitectureProfile) -> dict[str, str]:
    return {item.module: item.why for item in profile.unclassified}


def test_the_ordinary_form_of_the_made_up_model_is_understood() -> None:
    profile = look()
    assert profile.unclassified == ()
    assert [(group.kind, group.heads, group.kv_heads, group.head_dim) for group in profile.attention] == [("mha", 4, 4, 8)]
    assert set(profile.roles) == {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "embed", "head"}


def test_strange_projections_are_named_and_not_guessed() -> None:
    profile = look(self_attn=attention(alpha=HIDDEN, beta=HIDDEN, gamma=HIDDEN, delta=HIDDEN))
    assert set(unclassified(profile)) == {f"layers.*.self_attn.{name}" for name in ("alpha", "beta", "gamma", "delta")}
    assert not profile.has("attn")
    assert not profile.has_attention
    assert "model.attention" not in profile.traits
    assert profile.role_parameters["unclassified"] == 2 * 4 * HIDDEN * HIDDEN


def test_one_strange_matrix_beside_known_ones_is_named() -> None:
    profile = look(self_attn=attention(q_proj=HIDDEN, k_proj=HIDDEN, v_proj=HIDDEN, o_proj=HIDDEN, whatever=HIDDEN))
    assert list(unclassified(profile)) == ["layers.*.self_attn.whatever"]
    assert "'whatever'" in unclassified(profile)["layers.*.self_attn.whatever"]
    assert profile.has("attn.q")


def test_names_that_the_shapes_contradict_are_not_believed() -> None:
    """q and o would be 4 heads of 8; k gives 20 features, which are no heads of 8."""
    profile = look(self_attn=attention(q_proj=HIDDEN, k_proj=20, v_proj=20, o_proj=HIDDEN))
    assert not profile.has("attn")
    assert all("not heads of 8" in why for why in unclassified(profile).values())
    assert len(unclassified(profile)) == 4


def test_heads_that_the_configuration_does_not_know_are_not_believed() -> None:
    profile = look(
        self_attn=lambda: OddAttention(dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), HIDDEN), head_dim=4)
    )
    assert not profile.has("attn")
    assert all("8 heads" in why and "4" in why for why in unclassified(profile).values())


@pytest.mark.parametrize(
    "sizes",
    [
        {"up_proj": (HIDDEN, INNER), "down_proj": (INNER + 1, HIDDEN)},
        {"gate_proj": (HIDDEN, INNER), "up_proj": (HIDDEN, INNER + 1), "down_proj": (INNER, HIDDEN)},
        {"up_proj": (HIDDEN, 3 * INNER), "down_proj": (INNER, HIDDEN)},
        {"up_proj": (HIDDEN, INNER)},
        {"down_proj": (INNER, HIDDEN)},
        {"first": (HIDDEN, INNER), "second": (INNER, HIDDEN)},
        {"up_proj": (HIDDEN, INNER), "fc1": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)},
    ],
)
def test_an_mlp_that_does_not_fit_together_is_reported_whole(sizes: dict[str, tuple[int, int]]) -> None:
    profile = look(mlp=mlp(**sizes))
    assert not profile.has("mlp")
    assert set(unclassified(profile)) == {f"layers.*.mlp.{name}" for name in sizes}
    assert all(unclassified(profile).values())


def test_a_first_matrix_twice_as_wide_holds_gate_and_up_whatever_its_name() -> None:
    profile = look(mlp=mlp(fc1=(HIDDEN, 2 * INNER), fc2=(INNER, HIDDEN)))
    assert profile.unclassified == ()
    assert profile.groups("mlp.gate_up")[0].pattern == "layers.*.mlp.fc1"


def test_a_matrix_in_the_layer_itself_is_named() -> None:
    profile = look(mystery=lambda: nn.Linear(HIDDEN, HIDDEN))
    assert list(unclassified(profile)) == ["layers.*.mystery"]


def test_a_bare_parameter_in_the_layer_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(HIDDEN, 3))
            self.gain = nn.Parameter(torch.empty(HIDDEN))

    profile = look(odd=Odd)
    assert list(unclassified(profile)) == ["layers.*.odd.table"]
    assert profile.role_parameters["other"] == 2 * HIDDEN  # the vectors are counted, not classified


def test_a_second_list_of_layers_is_reported() -> None:
    with torch.device("meta"):
        model = OddModel({"self_attn": attention(), "mlp": mlp()})
        model.second = nn.ModuleList(nn.ModuleDict({"mlp": mlp()()}) for _ in range(1))
    profile = detect(model)
    assert profile.decoder == "layers"
    assert list(unclassified(profile)) == ["second.*"]


def test_a_layer_with_a_recurrence_is_a_mixer_whatever_its_projections_are_called() -> None:
    class Recurrent(OddAttention):
        def __init__(self) -> None:
            super().__init__({"q_proj": HIDDEN, "k_proj": HIDDEN, "v_proj": HIDDEN, "o_proj": HIDDEN})
            self.A_log = nn.Parameter(torch.empty(HEADS))

    profile = look(self_attn=Recurrent)
    assert profile.unclassified == ()
    assert not profile.has("attn")
    assert len(profile.modules("mixer")) == 8
    assert [group.kind for group in profile.attention] == ["linear"]
    assert profile.traits == {"model.recurrent"}


def test_experts_that_are_modules_get_two_stars() -> None:
    class MoE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(HIDDEN, 3, bias=False)
            sizes = {"w1": (HIDDEN, INNER), "w2": (INNER, HIDDEN), "w3": (HIDDEN, INNER)}
            self.experts = nn.ModuleList(OddMLP(**sizes) for _ in range(3))

    profile = look(mlp=MoE)
    assert profile.unclassified == ()
    assert [(group.pattern, group.experts, group.count) for group in profile.groups("mlp.experts")] == [
        (f"layers.*.mlp.experts.*.{name}", 3, 6) for name in ("w1", "w2", "w3")
    ]
    assert "layers.1.mlp.experts.2.w3" in profile.modules("experts")
    assert profile.modules("mlp.router") == ("layers.0.mlp.gate", "layers.1.mlp.gate")
    assert (profile.experts, profile.intermediate_size) == (3, INNER)


def test_a_conv1d_is_read_the_other_way_round() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = Conv1D(INNER, HIDDEN)
            self.c_proj = Conv1D(HIDDEN, INNER)

    profile = look(mlp=Plain)
    assert profile.unclassified == ()
    assert [(group.in_features, group.out_features) for group in profile.groups("mlp")] == [(HIDDEN, INNER), (INNER, HIDDEN)]


def test_a_configuration_that_raises_for_head_dim_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' heterogeneous configurations raise when a field is asked for that differs between layers."""
    from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

    def ambiguous(config: Any) -> int:
        raise AmbiguousGlobalPerLayerAttributeError("head_dim")

    parts = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), HIDDEN)
    with torch.device("meta"):
        model = OddModel({"self_attn": lambda: OddAttention(parts, head_dim=None), "mlp": mlp()})
    monkeypatch.setattr(OddConfig, "head_dim", property(ambiguous), raising=False)
    with pytest.raises(RuntimeError):
        _ = model.config.head_dim
    profile = detect(model)
    assert profile.unclassified == ()
    assert profile.attention[0].head_dim == HIDDEN // HEADS


def test_a_family_gives_roles_that_detection_misses() -> None:
    strange = attention(alpha=HIDDEN, beta=HIDDEN, gamma=HIDDEN, delta=HIDDEN)
    roles = {
        f"attn.{part}": f"layers.*.self_attn.{name}"
        for part, name in zip("qkvo", ("alpha", "beta", "gamma", "delta"), strict=True)
    }
    family = ArchitectureFamily(name="odd", model_types=("odd",), roles=roles)
    profile = look((family,), self_attn=strange)
    assert profile.unclassified == ()
    assert profile.modules("attn.q") == ("layers.0.self_attn.alpha", "layers.1.self_attn.alpha")
    assert [(group.kind, group.heads, group.layers) for group in profile.attention] == [("mha", 4, (0, 1))]
    other = ArchitectureFamily(name="odd", model_types=("another",), roles=roles)
    assert look((other,), self_attn=strange).unclassified


def test_a_family_that_names_nothing_is_reported() -> None:
    family = ArchitectureFamily(
        name="lab", model_types=("odd",), roles={"attn.q": "layers.*.attn.none", "attn.x": "layers.*.mlp.up_proj"}
    )
    left = unclassified(look((family,)))
    assert "no module is called so" in left["layers.*.attn.none"]
    assert "'attn.x'" in left["layers.*.mlp.up_proj"]
