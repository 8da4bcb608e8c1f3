"""`apollo`: the paper's step in float64, its authors' code where that works, and which matrices are projected."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.checkpoint import load_state, save_state
from luthier.core.contracts import MemoryTerms, NothingPatched
from luthier.core.environment import Environment
from luthier.core.memory import forecast
from luthier.core.options import NoOptions
from luthier.core.plan import Precision
from luthier.core.schedule import build_schedule
from luthier.core.targets import every_target, whole
from luthier.plugins import apollo, full
from luthier.plugins.apollo import ApolloConfig

from . import drawn

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
BETAS, EPS = (0.8, 0.95), 1e-6
RANK, GAP = 4, 5
MINI = {"rank": 1, "scale_type": "tensor", "scale": 128.0}


def is_projection(name: str) -> bool:
    """Of a tiny model: what its layers multiply with, but no router."""
    return any(word in name for word in ("_proj", "c_attn", "c_fc", "c_proj")) and "bias" not in name


def paper_rule(names: list[str], config: ApolloConfig) -> drawn.Rule:
    """Algorithm 1 of the paper for each matrix by itself, fused experts one after the other; AdamW for the rest."""

    def rule(name: str, place: Tensor, grad: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        kept = place - rate * decay * place
        correction = math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
        if not is_projection(name):
            moments(state, grad)
            first, second = state["m"] / (1 - BETAS[0] ** step), state["v"] / (1 - BETAS[1] ** step)
            return kept - rate * first / (second.sqrt() + EPS)
        if step == 1:
            state["seed"] = seed(f"{config.seed} {names.index(name)}")
        elif (step - 1) % config.update_proj_gap == 0:
            state["seed"] = seed(str(state["seed"]))
        wide = grad if grad.ndim == 3 else grad[None]
        short_rows = wide.shape[1] < wide.shape[2]
        draw = torch.Generator().manual_seed(state["seed"])
        size = (wide.shape[1], config.rank) if short_rows else (config.rank, wide.shape[2])
        normal = torch.randn((*grad.shape[:-2], *size), dtype=torch.float64, generator=draw) / math.sqrt(config.rank)
        normal = normal if grad.ndim == 3 else normal[None]
        matrices = state.setdefault("matrices", [{} for _ in wide])
        steps = [one_matrix(*pair, short_rows, config) for pair in zip(wide, normal, matrices, strict=True)]
        return kept - rate * correction * torch.stack(steps).reshape(place.shape)

    return rule


def one_matrix(grad: Tensor, normal: Tensor, state: dict[str, Any], short_rows: bool, config: ApolloConfig) -> Tensor:
    grad = grad if short_rows else grad.T  # the paper's m <= n
    low = (normal.T if short_rows else normal) @ grad
    moments(state, low)
    adapted = state["m"] / (state["v"].sqrt() + EPS)
    if config.scale_type == "channel":
        update = grad * (adapted.norm(dim=0) / low.norm(dim=0))  # column j by |R~[:, j]| / |R[:, j]|
    else:
        update = grad * (adapted.norm() / low.norm())
    last = state.get("last")
    if last is not None and update.norm() > 1.01 * last:
        update = update / update.norm() * 1.01 * last
    state["last"] = update.norm()
    update = update * math.sqrt(config.scale if config.scale is not None else grad.shape[0] / config.rank)
    return update if short_rows else update.T


def moments(state: dict[str, Any], grad: Tensor) -> None:
    state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * grad
    state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * grad**2


def seed(text: str) -> int:
    return random.Random(text).getrandbits(63)


@pytest.mark.parametrize("options", [{"rank": RANK}, {"rank": RANK, "scale": 2.0, "weight_decay": 0.1}, MINI])
def test_steps_follow_the_paper(kind: str, options: dict[str, Any], load: Load) -> None:
    model, profile = load(kind)
    model = full.attach(model.double(), profile, NoOptions())
    parameters = drawn.trained(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    config = ApolloConfig(
        lr=1e-3, betas=BETAS, eps=EPS, update_proj_gap=GAP, seed=3, **drawn.SCHEDULE, **{"weight_decay": 0.0, **options}
    )
    optimizer, after = apollo.build(model, config, profile)
    assert after == ()
    got = drawn.stepped(model, optimizer, config, parameters)
    names = [name for name in parameters if is_projection(name)]
    expected = drawn.written_out(paper_rule(names, config), start, 1e-3, config.weight_decay)
    assert drawn.difference(got, expected, start) < 1e-9


@pytest.mark.parametrize("options", [{"rank": RANK, "scale": 1.0}, MINI])
def test_steps_are_those_of_its_authors(options: dict[str, Any], load: Load) -> None:
    """From the same seeds, up to the first change of the projection."""
    library = pytest.importorskip("apollo_torch")
    ours, profile = load("llama")
    theirs, _ = load("llama")
    config = ApolloConfig(lr=1e-3, eps=1e-12, **options, **drawn.SCHEDULE)
    start = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    optimizer, _ = apollo.build(ours, config, profile)
    # Its AdamW adds eps before the bias correction, torch's after it: made too small to show.
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
    for name, parameter in theirs.named_parameters():
        groups[int(is_projection(name))]["params"].append(parameter)
    kind = {"scale_type": config.scale_type, "scale": config.scale, "update_proj_gap": 200}
    groups[1] |= {"rank": config.rank, "proj": "random", "proj_type": "std", **kind}
    reference = library.APOLLOAdamW(groups, lr=1e-3, betas=config.betas, eps=config.eps, weight_decay=0.0)
    for number, parameter in enumerate(groups[1]["params"]):
        reference.state[parameter]["seed"] = seed(f"0 {number}")
    got = drawn.stepped(ours, optimizer, config, drawn.trained(ours))
    expected = drawn.stepped(theirs, reference, config, drawn.trained(theirs))
    assert drawn.difference(got, expected, start) < 1e-5


def test_a_projection_keeps_lengths(load: Load) -> None:
    """Entries of variance 1/r: in the mean the square of the length stays (Johnson-Lindenstrauss)."""
    from luthier.plugins.apollo.optimizer import project

    grad = torch.randn((3, 40, 200), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for left in (True, False):
        draws = [project(grad, 8, seed=number, left=left) for number in range(1, 51)]
        ratios = [draw.square().sum() / grad.square().sum() for draw in draws]
        assert float(torch.stack(ratios).mean()) == pytest.approx(1.0, rel=0.03)


def test_the_default_scale_makes_steps_as_large_as_adamws(load: Load) -> None:
    """sqrt(shorter side / rank) takes back what the projection does to the factors."""
    model, profile = load("llama")
    config = ApolloConfig(lr=1e-3, rank=16, schedule="constant", warmup=0)
    plain, _ = load("llama")
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    optimizer, _ = apollo.build(model, config, profile)
    weight, other = (one.model.layers[0].mlp.down_proj.weight for one in (model, plain))
    lengths = []
    for parameter, moving in ((weight, optimizer), (other, reference)):
        draw = torch.Generator().manual_seed(0)
        before = parameter.detach().clone()
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        moving.step()
        lengths.append(float((parameter.detach() - before).norm()))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_an_expert_without_tokens_is_not_forgotten(load: Load) -> None:
    """A zero gradient moves nothing, and does not make the limiter cut the next one to nothing."""
    model, profile = load("mixtral")
    config = ApolloConfig(lr=1e-3, rank=4, schedule="constant", warmup=0)
    optimizer, _ = apollo.build(model, config, profile)
    experts = model.model.layers[0].mlp.experts.down_proj
    moved = []
    for step in range(4):
        before = experts.detach().clone()
        experts.grad = drawn.gradient("experts", experts.shape, step).float()
        if step in (0, 2):
            experts.grad[1] = 0
        optimizer.step()
        moved.append((experts.detach() - before).flatten(1).norm(dim=1))
    assert float(moved[0][1]) == float(moved[2][1]) == 0
    assert float(moved[1][1]) > 0.1 * float(moved[1][0])
    assert float(moved[3][1]) > 0.1 * float(moved[1][1])
    assert torch.isfinite(experts).all()


def test_one_without_gradient_is_left_alone_and_gradients_stay(load: Load) -> None:
    model, profile = load("llama")
    optimizer, _ = apollo.build(model, ApolloConfig(rank=4, weight_decay=0.5), profile)
    quiet, loud = (model.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.o_proj.weight)
    before = quiet.detach().clone()
    loud.grad = torch.ones_like(loud)
    optimizer.step()
    assert torch.equal(quiet, before)
    assert quiet not in optimizer.state
    assert loud.grad is not None


def projected(model: nn.Module, profile: Any, config: ApolloConfig) -> set[str]:
    optimizer, _ = apollo.build(model, config, profile)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(one)] for group in optimizer.param_groups if "rank" in group for one in group["params"]}


def test_which_matrices_are_projected(kind: str, load: Load) -> None:
    model, profile = load(kind)
    names = {name for name, _ in model.named_parameters()}
    assert projected(model, profile, ApolloConfig(rank=4)) == {name for name in names if is_projection(name)}


def test_roles_names_and_rank_choose(load: Load) -> None:
    model, profile = load("llama")
    some = projected(model, profile, ApolloConfig(rank=4, roles=("attn.q",)))
    assert {name.split(".")[-2] for name in some} == {"q_proj"}
    model, profile = load("llama")
    one = projected(model, profile, ApolloConfig(rank=4, roles=("model.layers.1.mlp.up_proj",)))
    assert one == {"model.layers.1.mlp.up_proj.weight"}
    model, profile = load("llama")
    wide = projected(model, profile, ApolloConfig(rank=32))  # keys and values are 32 wide
    assert {name.split(".")[-2] for name in wide} == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("role", ["embed", "head"])
def test_a_tied_matrix_is_meant_by_either_name(role: str, load: Load) -> None:
    """Of the two only `model.embed_tokens.weight` stands in named_parameters; a plan says yes to both."""
    model, profile = load("gemma2")
    config = ApolloConfig(rank=4, roles=(role,))
    assert profile.tied_embeddings
    assert apollo.supports(profile, HERE, config)
    assert projected(model, profile, config) == {"model.embed_tokens.weight"}


def test_layers_that_a_method_added_are_projected_too(load: Load) -> None:
    import copy

    model, profile = load("llama")
    model.model.layers.append(copy.deepcopy(model.model.layers[1]))
    names = projected(model, profile, ApolloConfig(rank=4))
    assert "model.layers.2.mlp.up_proj.weight" in names


def test_what_is_refused(load: Load) -> None:
    model, profile = load("llama")
    assert apollo.supports(profile, HERE, ApolloConfig())
    refusal = apollo.supports(profile, HERE, ApolloConfig(roles=("experts",)))
    assert not refusal
    assert "experts" in refusal.reason
    refusal = apollo.supports(profile, HERE, ApolloConfig(rank=64))
    assert not refusal
    assert "rank 64" in refusal.reason
    assert "below 64" in refusal.fix
    with pytest.raises(ValueError, match="roles"):
        ApolloConfig(roles=())
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.raises(NothingPatched, match="apollo"):
        apollo.build(model, ApolloConfig(rank=4), profile)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": RANK},
        MINI,
        {"rank": 16, "roles": ("model.layers.1.*_proj", "attn")},
        {"rank": RANK, "roles": ("head",)},
        {"rank": RANK, "roles": ("embed",)},
    ],
)
def test_state_bytes_are_as_predicted(kind: str, dtype: Any, options: dict[str, Any], load: Load) -> None:
    model, profile = load(kind)
    if "roles" in options and not any(target.name.startswith("model.layers") for target in every_target(profile)):
        options = {**options, "roles": ("transformer.h.1.*",)}
    model = full.attach(model.to(getattr(torch, dtype)), profile, NoOptions())
    config = ApolloConfig(**options)
    optimizer, _ = apollo.build(model, config, profile)
    drawn.step_once(drawn.trained(model), optimizer, 0)
    tensors = [tensor for state in optimizer.state.values() for key, tensor in state.items() if key not in ("step", "seed")]
    measured = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    matrices = whole(profile, every_target(profile), layers=profile.layers)
    terms = [MemoryTerms(trainable=profile.parameters, matrices=matrices), apollo.memory(profile, config)]
    precision = Precision(name="fp32", weights=dtype, compute=dtype, why="")
    assert forecast(profile, terms, precision, 8).optimizer == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_bit_for_bit(dtype: torch.dtype, load: Load, tmp_path: Any) -> None:
    """Over changes of the projection, with a fresh optimizer whose seed says otherwise: the state has the projection."""
    ends = []
    for stop in (None, 7):
        model, profile = load("mixtral")
        model = model.to(dtype)
        config = ApolloConfig(lr=1e-3, rank=4, update_proj_gap=3, **drawn.SCHEDULE)
        optimizer, _ = apollo.build(model, config, profile)
        scheduler = build_schedule(optimizer, config, 12)
        for step in range(12):
            if step == stop:
                save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng={}, progress={})
                optimizer, _ = apollo.build(model, ApolloConfig(lr=1e-3, rank=4, update_proj_gap=3, seed=99), profile)
                scheduler = build_schedule(optimizer, config, 12)
                load_state(tmp_path, optimizer=optimizer, scheduler=scheduler)
            drawn.step_once(drawn.trained(model), optimizer, step)
            scheduler.step()
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
