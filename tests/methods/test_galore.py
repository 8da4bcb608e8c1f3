"""`galore`: the same steps as galore-torch, a stack of matrices as its matrices alone, state as the formula says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from galore_torch import GaLoreAdamW as TheirAdamW
from torch import Tensor, nn

from luthier.core.context import BuildContext
from luthier.core.contracts import Matrix, MemoryTerms, NothingPatched
from luthier.core.errors import LuthierError
from luthier.core.memory import forecast
from luthier.core.plan import Precision
from luthier.core.testing.measuring import storage_bytes, tensors_in
from luthier.plugins import full, galore
from luthier.plugins.galore import GaloreConfig
from luthier.plugins.galore.low_rank_adam import GaLoreAdamW
from luthier.plugins.galore.terms import memory_terms

Load = Callable[[str], tuple[Any, Any]]

STEPS, REFRESH, RANK, SCALE, LR, DECAY = 50, 20, 8, 0.25, 1e-2, 0.1
ADAM: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.99), "eps": 1e-6}
FP32 = Precision(name="fp32", weights="float32", compute="float32", why="")


def weights_of(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(0.1 * torch.randn(shape, generator=draw, dtype=dtype)) for shape in shapes]


def noise(weight: Tensor, step: int, place: int) -> Tensor:
    """Columns of very different size, so that the singular values lie apart."""
    draw = torch.Generator().manual_seed(100 * step + place)
    drawn = torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return drawn * torch.linspace(0.1, 3, weight.shape[-1], dtype=weight.dtype)


def run(optimizer: Any, weights: list[nn.Parameter], steps: int = STEPS, start: int = 0) -> None:
    """Gradients that depend on the weights, so that a difference would grow; the rate falls to a tenth."""
    for step in range(start, start + steps):
        for place, weight in enumerate(weights):
            weight.grad = noise(weight, step, place) + 5 * weight.detach()
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - 0.9 * step / STEPS)
        optimizer.step()
        optimizer.zero_grad()


def ours(projected: list[nn.Parameter], others: list[nn.Parameter] = [], **changes: Any) -> GaLoreAdamW:  # noqa: B006
    projection = {"rank": RANK, "refresh": REFRESH, "scale": SCALE, "proj_type": "std", "svd": "exact"} | changes
    groups = [{"params": projected, "weight_decay": DECAY, **projection}, {"params": others, "weight_decay": DECAY}]
    return GaLoreAdamW([group for group in groups if group["params"]], **ADAM)


def theirs(projected: list[nn.Parameter], others: list[nn.Parameter] = [], proj_type: str = "std") -> Any:  # noqa: B006
    projection = {"rank": RANK, "update_proj_gap": REFRESH, "scale": SCALE, "proj_type": proj_type}
    groups = [{"params": projected, "weight_decay": DECAY, **projection}, {"params": others, "weight_decay": DECAY}]
    return TheirAdamW([group for group in groups if group["params"]], **ADAM, no_deprecation_warning=True)


def furthest(first: list[nn.Parameter], second: list[nn.Parameter]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(first, second, strict=True))


# ---- the steps


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fifty_steps_equal_galore_torch(dtype: torch.dtype, proj_type: str) -> None:
    """Two refreshes after the first, decay, a falling rate; tall, wide and square weights, and some not projected."""
    shapes: list[tuple[int, ...]] = [(96, 64), (64, 128), (64, 64), (33, 20), (48,), (80, 30)]
    mine, reference, start = (weights_of(shapes, dtype) for _ in range(3))
    run(ours(mine[:4], mine[4:], proj_type=proj_type), mine)
    run(theirs(reference[:4], reference[4:], proj_type), reference)
    assert furthest(mine, reference) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert furthest(mine, start) > 0.01


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "gemma2"])
def test_fifty_steps_of_training_equal_galore_torch(load: Load, model_type: str) -> None:
    """Every parameter of a model, four refreshes after the first, in float64.

    In float32 two runs that differ in the last bit part at a refresh, and galore-torch's own do as well: LAPACK chooses the
    signs of singular vectors, a difference of 1e-6 turns one in twenty, and the moments carry on with the old.
    """
    (mine, profile), (reference, _) = load(model_type), load(model_type)
    config = GaloreConfig(lr=1e-3, rank=RANK, refresh=10, weight_decay=DECAY)
    optimizer, _ = galore.build(mine.double(), config, profile=profile)
    same = dict(zip(map(id, mine.parameters()), reference.double().parameters(), strict=True))
    groups = []
    for group in optimizer.param_groups:
        projection = {"rank": RANK, "update_proj_gap": 10, "scale": SCALE, "proj_type": "std"} if "rank" in group else {}
        decay = {"weight_decay": group["weight_decay"]}
        groups.append({"params": [same[id(weight)] for weight in group["params"]], **decay, **projection})
    library = TheirAdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, no_deprecation_warning=True)
    for step in range(STEPS):
        batch = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(step))
        for model, steps in ((mine, optimizer), (reference, library)):
            model(input_ids=batch, labels=batch).loss.backward()
            steps.step()
            steps.zero_grad()
    assert furthest(list(mine.parameters()), list(reference.parameters())) < 1e-9


def test_fifty_steps_go_on_from_the_state_of_galore_torch() -> None:
    """From a state that the library made in thirty steps, twenty of ours are twenty of the library's."""
    mine, reference = weights_of([(96, 64), (64, 128)], torch.float32), weights_of([(96, 64), (64, 128)], torch.float32)
    library = theirs(reference)
    run(library, reference, steps=30)
    optimizer = ours(mine)
    for own, other in zip(mine, reference, strict=True):
        own.data.copy_(other)
        state = library.state[other]
        moments = {key: state[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[own] = {"step": state["step"], "projector": state["projector"].ortho_matrix.clone(), **moments}
    for optimizer_of, weights in ((optimizer, mine), (library, reference)):
        run(optimizer_of, weights, steps=20, start=30)
    assert furthest(mine, reference) < 1e-5


@pytest.mark.parametrize("shape", [(3, 40, 24), (3, 24, 40)])
def test_a_stack_of_matrices_is_its_matrices_alone(shape: tuple[int, ...]) -> None:
    """Fused experts against galore-torch on each expert, which the library itself cannot take together."""
    (stack,) = weights_of([shape], torch.float32)
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    optimizer, library = ours([stack]), theirs(alone)
    for step in range(STEPS):
        gradient = noise(stack, step, 0) + 5 * stack.detach()
        stack.grad = gradient
        for matrix, part in zip(alone, gradient, strict=True):
            matrix.grad = part.clone()
        optimizer.step()
        library.step()
    assert (stack - torch.stack(alone)).detach().abs().max() < 1e-5


def test_an_expert_without_tokens_keeps_its_projector() -> None:
    (stack,) = weights_of([(2, 40, 24)], torch.float32)
    optimizer = ours([stack], refresh=1)
    stack.grad = noise(stack, 0, 0)
    optimizer.step()
    first = optimizer.state[stack]["projector"].clone()
    stack.grad = noise(stack, 1, 0)
    stack.grad[1] = 0
    optimizer.step()
    second = optimizer.state[stack]["projector"]
    assert torch.equal(second[1], first[1])
    assert not torch.equal(second[0], first[0])


def test_beside_bfloat16_weights_the_state_is_float32() -> None:
    """And after loading, where torch casts it to the format of the weights."""
    weights = weights_of([(96, 64), (64,)], torch.bfloat16)
    optimizer = ours(weights[:1], weights[1:])
    run(optimizer, weights, steps=3)
    again = ours(weights[:1], weights[1:])
    again.load_state_dict(optimizer.state_dict())
    for name in ("projector", "exp_avg", "exp_avg_sq"):
        kept, loaded = optimizer.state[weights[0]][name], again.state[weights[0]][name]
        assert kept.dtype == torch.float32
        assert loaded.dtype == torch.float32
        assert torch.equal(kept, loaded)
    assert again.state[weights[1]]["exp_avg"].dtype == torch.bfloat16


def test_a_gradient_that_is_not_finite_is_said() -> None:
    (weight,) = weights_of([(96, 64)], torch.float32)
    weight.grad = torch.full_like(weight, float("nan"))
    with pytest.raises(LuthierError, match=r"shape \(96, 64\)"):
        ours([weight]).step()


# ---- which weights


def built(load: Load, kind: str, **options: Any) -> tuple[Any, Any, Any, list[str]]:
    model, profile = load(kind)
    said: list[str] = []
    context = BuildContext(precision=FP32, notice=said.append)
    optimizer, after = galore.build(model, GaloreConfig(**options), profile=profile, context=context)
    assert after == ()
    return model, profile, optimizer, said


def projected_names(model: Any, optimizer: Any) -> set[str]:
    held = {id(weight) for group in optimizer.param_groups if "rank" in group for weight in group["params"]}
    return {name for name, weight in model.named_parameters() if id(weight) in held}


PROJECTIONS = {
    "llama": 7, "qwen3": 7, "gemma2": 7,  # q k v o gate up down
    "gpt2": 4,  # c_attn c_proj c_fc c_proj
    "phi3": 4,  # qkv_proj o_proj gate_up_proj down_proj
    "mixtral": 6,  # q k v o, and gate_up_proj and down_proj of all experts; not the router
}  # fmt: skip


def test_every_projection_of_the_layers_is_projected(load: Load, kind: str) -> None:
    """And every parameter that trains is in the optimizer once; a quarter of 64 is the rank."""
    model, _, optimizer, said = built(load, kind)
    names = projected_names(model, optimizer)
    assert len(names) == 2 * PROJECTIONS[kind]
    assert all(".layers." in name or ".h." in name for name in names)
    assert said == [f"galore: {len(names)} weights are projected to rank 16"]
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert len(held) == len({id(weight) for weight in held}) == len(list(model.parameters()))
    assert [group["rank"] for group in optimizer.param_groups if "rank" in group] == [16]
    vectors = [group for group in optimizer.param_groups if any(weight.ndim < 2 for weight in group["params"])]
    assert [group["weight_decay"] for group in vectors] == [0.0]


def test_weights_with_a_short_side_are_counted_and_move_by_adamw(load: Load) -> None:
    """At rank 32 the keys and values, which have 32 rows, have nothing to gain."""
    model, _, optimizer, said = built(load, "llama", rank=32)
    assert len(projected_names(model, optimizer)) == 10
    rest = "4 with a side of at most 32 are not, they move by AdamW as the rest does"
    assert said == [f"galore: 10 weights are projected to rank 32; {rest}"]


def test_roles_single_out_weights(load: Load) -> None:
    model, _, optimizer, _ = built(load, "llama", roles=("attn.q", "model.layers.1.mlp.down_proj", "embed"))
    names = {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"}
    assert projected_names(model, optimizer) == names | {
        "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight",
    }  # fmt: skip


def test_a_tied_head_is_projected_by_either_name(load: Load) -> None:
    """And counted so: the moments of 16 numbers for each of the vocabulary, and the projector of the hidden size."""
    model, profile, optimizer, _ = built(load, "gemma2", roles=("head",))
    assert projected_names(model, optimizer) == {"model.embed_tokens.weight"}
    size = memory_terms(profile, GaloreConfig(roles=("head",))).optimizer_state
    assert size is not None
    rows, hidden = profile.vocab_size, profile.hidden_size
    assert size(Matrix(role="embed", shape=(rows, hidden))).bytes == 4 * (16 * hidden + 2 * 16 * rows)


def test_layers_that_the_profile_does_not_know_are_projected(load: Load) -> None:
    """As block expansion adds them."""
    import copy

    model, profile = load("llama")
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    optimizer, _ = galore.build(model, GaloreConfig(), profile=profile)
    assert len(projected_names(model, optimizer)) == 21


def test_a_run_in_which_nothing_can_be_projected_is_refused(load: Load) -> None:
    model, profile = load("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_("norm" in name)
    with pytest.raises(NothingPatched, match="none can be projected to rank 16"):
        galore.build(model, GaloreConfig(), profile=profile)


# ---- memory


def test_bytes_of_state_by_hand() -> None:
    """A 576 x 1536 weight at rank 64: the projector of its short side, and two moments of 64 x 1536, in float32."""
    from transformers import LlamaConfig

    from luthier.registry.detect import detect

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 9}
    profile = detect(LlamaConfig(**sizes, num_key_value_heads=3, vocab_size=1000))
    down, query = Matrix(role="mlp.down", shape=(576, 1536)), Matrix(role="attn.q", shape=(576, 576))
    embed = Matrix(role="embed", shape=(1000, 576))

    def state(matrix: Matrix, **options: Any) -> tuple[float, float]:
        size = memory_terms(profile, GaloreConfig(rank=64, **options)).optimizer_state
        assert size is not None
        return size(matrix).numbers, size(matrix).bytes

    assert state(down) == (0, 4 * (576 * 64 + 2 * 64 * 1536))
    assert state(down, proj_type="reverse_std") == (0, 4 * (64 * 1536 + 2 * 576 * 64))
    assert state(query) == (0, 4 * (64 * 576 + 2 * 576 * 64))
    assert state(embed) == (2 * 1000 * 576, 0)
    assert state(down, roles=("attn",)) == (2 * 576 * 1536, 0)
    assert state(down, backend="galore-torch") == (576 * 64 + 2 * 64 * 1536, 0)
    moments = 64 * 1536
    assert state(down, backend="galore-torch", bits=8) == (576 * 64, 2 * moments + 2 * 4 * moments // 256)
    # One of two layers.
    half = state(down, roles=("model.layers.0.mlp.down_proj",))
    assert half == (576 * 1536, 2 * (576 * 64 + 2 * 64 * 1536))
    gradient = memory_terms(profile, GaloreConfig(rank=64, layerwise=True)).gradient
    assert gradient is not None
    assert (gradient(down).numbers, gradient(down).bytes) == (0, 4 * 64 * 1536)
    assert (gradient(embed).numbers, gradient(embed).bytes) == (1000 * 576, 0)


def shares(profile: Any, config: GaloreConfig, *, known: bool) -> list[MemoryTerms]:
    """With the trained tensors listed, as `full` does it, and as an adapter gives them that cannot."""
    terms = full.memory(profile, full.NoOptions())
    assert terms.matrices
    return [terms if known else MemoryTerms(trainable=terms.trainable), memory_terms(profile, config)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layerwise": True},
        {"rank": 24, "proj_type": "reverse_std"},
        {"backend": "galore-torch"},
        {"roles": ("mlp.down",)},
    ],
    ids=lambda options: "-".join(map(str, options)) or "default",
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_state_and_gradient_bytes_are_as_predicted(
    load: Load, ids: Tensor, model_type: str, options: dict[str, Any], known: bool
) -> None:
    """Storage counted, so that memory behind a slice would show."""
    if model_type == "mixtral":
        options = {key: value for key, value in options.items() if key not in ("backend", "roles")}
    model, profile, optimizer, _ = built(load, model_type, **options)
    predicted = forecast(profile, shares(profile, GaloreConfig(**options), known=known), FP32, 1)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    gradients += getattr(optimizer, "_held", {}).values()
    assert storage_bytes(gradients) == pytest.approx(predicted.gradients, rel=0.01)
    optimizer.step()
    assert storage_bytes(tensors_in(optimizer.state_dict()["state"])) == pytest.approx(predicted.optimizer, rel=0.01)
    if options.get("layerwise"):
        whole = forecast(profile, shares(profile, GaloreConfig(), known=known), FP32, 1)
        assert predicted.gradients < 0.7 * whole.gradients


# ---- options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 8}, "bits: 8 needs"),
        ({"backend": "galore-torch", "svd": "randomized"}, "svd: galore-torch has no randomized"),
        ({"backend": "galore-torch", "layerwise": True}, "layerwise: galore-torch"),
        ({"roles": ()}, "roles: names nothing"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GaloreConfig(**options)


@pytest.mark.parametrize(
    ("model_type", "options", "kind", "says"),
    [
        ("llama", {}, "yes", ""),
        ("mixtral", {}, "yes", ""),
        ("llama", {"rank": 64}, "no", "at rank 64 nothing in llama is left to project: the longest short side is 64"),
        ("llama", {"roles": ("norm",)}, "no", "is a norm of shape"),
        ("llama", {"roles": ("experts",)}, "no", "no modules of role experts"),
        ("llama", {"roles": ("q_prj",)}, "no", "q_prj"),
        ("mixtral", {"backend": "galore-torch"}, "no", "three dimensions"),
        ("mixtral", {"backend": "galore-torch", "roles": ("attn",)}, "yes", ""),
        ("llama", {"backend": "galore-torch", "bits": 8}, "missing", "CUDA"),
    ],
)
def test_what_it_says_of_a_model(load: Load, model_type: str, options: dict[str, Any], kind: str, says: str) -> None:
    from luthier.registry.environment import read_environment

    _, profile = load(model_type)
    answer = galore.supports(profile, read_environment(probe=False), GaloreConfig(**options))
    assert answer.kind == kind
    assert says in answer.reason


def test_layerwise_is_declared(load: Load) -> None:
    _, profile = load("llama")
    (method,) = galore.luthier_optimizers()
    assert "optimizer.layerwise" not in method.declaration(profile, GaloreConfig()).provides
    assert "optimizer.layerwise" in method.declaration(profile, GaloreConfig(layerwise=True)).provides
    assert "engine.ddp" in method.declaration(profile, GaloreConfig(layerwise=True)).conflicts
