"""`badam`: AdamW on one block after the other, restarted with every turn; against the paper and its authors' code."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.checkpoint import load_state, save_state
from luthier.core.contracts import MemoryTerms, NothingPatched
from luthier.core.errors import ModelError
from luthier.core.memory import forecast
from luthier.core.options import NoOptions
from luthier.core.plan import Precision
from luthier.core.schedule import build_schedule
from luthier.core.targets import every_target, whole
from luthier.plugins import badam, full
from luthier.plugins.badam import BAdamConfig
from luthier.plugins.badam.blocks import cut

from . import drawn
from .stepping import STEPS

Load = Callable[[str], tuple[Any, Any]]
BETAS, EPS = (0.8, 0.95), 1e-6
EVERY = 3


def order_of(blocks: list[str], order: str, switch_every: int, seed: int = 0) -> Iterator[str]:
    """The block of every step of a run: passes over all of them, `switch_every` steps on each."""
    passes = 0
    while True:
        turn = list(blocks)
        if order == "random":
            turn = random.Random(f"{seed} {passes}").sample(blocks, len(blocks))
        elif order == "descending":
            turn.reverse()
        for block in turn:
            yield from [block] * switch_every
        passes += 1


def paper_rule(block_of: Callable[[str], str], order: list[str]) -> drawn.Rule:
    """Algorithm 1 of the paper: Adam on the block of this step, its moments zero at the start of every turn."""

    def rule(name: str, place: Tensor, grad: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        if order[step - 1] != block_of(name):
            return place
        if (step - 1) % EVERY == 0:
            state.clear()
        state["t"] = state.get("t", 0) + 1
        state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * grad
        state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * grad**2
        first, second = state["m"] / (1 - BETAS[0] ** state["t"]), state["v"] / (1 - BETAS[1] ** state["t"])
        return place - rate * decay * place - rate * first / (second.sqrt() + EPS)

    return rule


def block_of(name: str) -> str:
    """In a tiny model without tied embeddings: layers, embeddings, and the head, with which the last norm goes."""
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return found[1] if found else "embed" if "embed" in name else "head"


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_steps_follow_the_paper(order: Any, model_type: str, load: Load) -> None:
    model, profile = load(model_type)
    model = full.attach(model.double(), profile, NoOptions())
    parameters = dict(model.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    options = {"lr": 0.01, "betas": BETAS, "eps": EPS, "weight_decay": 0.1, "switch_every": EVERY, "seed": 5}
    config = BAdamConfig(order=order, **options, **drawn.SCHEDULE)
    optimizer, after = badam.build(model, config, profile)
    assert after == ()
    turns = order_of(["embed", "0", "1", "head"], order, EVERY, seed=5)
    blocks = [next(turns) for _ in range(STEPS)]
    assert set(blocks) == {"embed", "0", "1", "head"}
    got = drawn.stepped(model, optimizer, config, parameters)
    expected = drawn.written_out(paper_rule(block_of, blocks), start, 0.01, 0.1)
    assert drawn.difference(got, expected, start) < 1e-12


def test_only_the_active_block_has_gradients_and_state(kind: str, load: Load, ids: Any) -> None:
    model, profile = load(kind)
    model = full.attach(model, profile, NoOptions())
    every = dict(model.named_parameters())
    optimizer, _ = badam.build(model, BAdamConfig(lr=0.01, switch_every=2, order="ascending"), profile)
    seen = set()
    for step in range(2 * len(optimizer.blocks)):
        active = {id(parameter) for parameter in optimizer.blocks[step // 2]}
        before = {name: parameter.detach().clone() for name, parameter in every.items()}
        for _ in range(2):  # two micro-batches
            model(input_ids=ids, labels=ids).loss.backward()
        assert {id(parameter) for parameter in every.values() if parameter.grad is not None} == active
        optimizer.step()
        optimizer.zero_grad()
        held = {id(parameter) for parameter in optimizer.state}
        assert held == (active if step % 2 == 0 else set())
        changed = {id(parameter) for name, parameter in every.items() if not torch.equal(parameter, before[name])}
        assert changed == active
        seen |= active
    assert seen == {id(parameter) for parameter in every.values()}


def test_steps_are_those_of_its_authors(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """On a Llama without embeddings and head; their code leaves the last norm alone too."""
    library = pytest.importorskip("badam")
    ours, profile = load("llama")
    theirs, _ = load("llama")
    for model in (ours, theirs):
        model.model.norm.weight.requires_grad_(False)
    start = {name: tensor.detach().clone() for name, tensor in ours.named_parameters() if ".layers." in name}
    config = BAdamConfig(lr=0.01, switch_every=3, order="ascending", embeddings=False, schedule="constant", warmup=0)
    optimizer, _ = badam.build(ours, config, profile)
    with pytest.warns(UserWarning, match="fp16/bf16"):
        reference = library.BlockOptimizer(
            torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0),
            list(theirs.named_parameters()),
            switch_block_every=3,
            switch_mode="ascending",
            verbose=0,
        )
    reference.global_step = -1  # it counts from one step on: its first turn would be a step shorter than the others
    layers = {name: dict(ours.named_parameters())[name] for name in start}
    got = drawn.stepped(ours, optimizer, config, layers)
    expected = drawn.stepped(theirs, reference, config, {name: dict(theirs.named_parameters())[name] for name in start})
    assert drawn.difference(got, expected, start) < 1e-5


@pytest.mark.parametrize("order", ["random", "descending"])
def test_a_checkpoint_in_the_middle_of_a_pass(order: Any, load: Load, tmp_path: Any) -> None:
    """The block, the place in its turn and the order of the passes to come are those of the run that was not stopped."""
    config = BAdamConfig(lr=0.01, switch_every=2, order=order, seed=3, **drawn.SCHEDULE)

    def fresh(weights: Any = None) -> tuple[Any, Any, Any]:
        model, profile = load("llama")
        model = full.attach(model, profile, NoOptions())
        model.load_state_dict(weights or model.state_dict())
        optimizer, _ = badam.build(model, config, profile)
        return model, optimizer, build_schedule(optimizer, config, STEPS)

    def go(model: Any, optimizer: Any, scheduler: Any, steps: range) -> list[int]:
        active = []
        for step in steps:
            active.append(optimizer.active)
            drawn.step_once(dict(model.named_parameters()), optimizer, step)
            scheduler.step()
        return active

    straight = fresh()
    blocks = go(*straight, range(20))
    model, optimizer, scheduler = fresh()
    go(model, optimizer, scheduler, range(9))
    save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng={}, progress={})
    resumed = fresh(model.state_dict())
    load_state(tmp_path, optimizer=resumed[1], scheduler=resumed[2])
    assert resumed[1].active == blocks[9]
    assert go(*resumed, range(9, 20)) == blocks[9:]
    for name, parameter in straight[0].named_parameters():
        assert torch.equal(resumed[0].get_parameter(name), parameter), name


def test_state_of_other_blocks_is_refused(load: Load, tmp_path: Any) -> None:
    model, profile = load("llama")
    optimizer, _ = badam.build(model, BAdamConfig(switch_every=2), profile)
    scheduler = build_schedule(optimizer, None, 8)
    save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng={}, progress={})
    model, profile = load("llama")
    other, _ = badam.build(model, BAdamConfig(switch_every=3), profile)
    with pytest.raises(ModelError, match="switch_every"):
        load_state(tmp_path, optimizer=other, scheduler=scheduler)


def test_how_models_are_cut(kind: str, load: Load) -> None:
    model, profile = load(kind)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = [[names[id(one)] for one in block] for block in cut(model, profile.decoder, layers=1, outside=True)]
    assert sorted(name for block in blocks for name in block) == sorted(names.values())
    before = {"gpt2": [["transformer.wte.weight"], ["transformer.wpe.weight"]]}.get(kind, [["model.embed_tokens.weight"]])
    assert blocks[: len(before)] == before
    first, second, *after = blocks[len(before) :]
    assert first == [name for name in names.values() if name.startswith(f"{profile.decoder}.0.")]
    last_norm = [name for name in names.values() if name.startswith(("model.norm.", "transformer.ln_f."))]
    layer = [name for name in names.values() if name.startswith(f"{profile.decoder}.1.")]
    if profile.tied_embeddings:
        assert (second, after) == (layer + last_norm, [])
    else:
        assert (second, after) == (layer, [["lm_head.weight", *last_norm]])


def test_larger_blocks_and_none_outside(load: Load) -> None:
    model, profile = load("llama")
    optimizer, _ = badam.build(model, BAdamConfig(layers_per_block=2, embeddings=False, switch_every=1), profile)
    assert len(optimizer.blocks) == 1
    assert not model.lm_head.weight.requires_grad
    assert not model.model.embed_tokens.weight.requires_grad
    for step in range(3):  # one block has no next: it keeps its state
        drawn.step_once(dict(model.named_parameters()), optimizer, step)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_blocks_are_cut_among_what_trains(load: Load) -> None:
    model, profile = load("llama")
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    optimizer, _ = badam.build(model, BAdamConfig(switch_every=1), profile)
    assert len(optimizer.blocks) == 1
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert {name for name in frozen if "layers.1." in name} == set()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.raises(NothingPatched, match="embeddings: true"):
        badam.build(model, BAdamConfig(embeddings=False), profile)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"embeddings": False}, {"layers_per_block": 2}])
def test_memory_is_as_predicted(kind: str, dtype: Any, options: dict[str, Any], load: Load) -> None:
    """Over a whole pass, the most that state and gradients take."""
    model, profile = load(kind)
    model = full.attach(model.to(getattr(torch, dtype)), profile, NoOptions())
    config = BAdamConfig(lr=0.01, switch_every=2, order="ascending", **options)
    optimizer, _ = badam.build(model, config, profile)
    state_bytes = gradient_bytes = 0
    for step in range(2 * len(optimizer.blocks)):
        drawn.step_once(dict(model.named_parameters()), optimizer, step)
        moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
        state_bytes = max(state_bytes, sum(tensor.numel() * tensor.element_size() for tensor in moments))
        active = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradient_bytes = max(gradient_bytes, sum(one.numel() * one.element_size() for one in active))
    for matrices in ((), whole(profile, every_target(profile), layers=profile.layers)):
        terms = [MemoryTerms(trainable=profile.parameters, matrices=matrices), badam.memory(profile, config)]
        found = forecast(profile, terms, Precision(name="fp32", weights=dtype, compute=dtype, why=""), 8)
        assert found.optimizer == pytest.approx(state_bytes, rel=0.01)
        assert found.gradients == pytest.approx(gradient_bytes, rel=0.01)


def test_memory_beside_an_adapter_that_trains_some(load: Load) -> None:
    """Where only the attention of one layer trains, that is the largest block."""
    _, profile = load("llama")
    matrices = whole(profile, [target for target in every_target(profile) if target.layer == 1 and "attn" in target.role])
    trainable = sum(matrix.size * matrix.count for matrix in matrices)
    terms = [MemoryTerms(trainable=trainable, matrices=matrices), badam.memory(profile, BAdamConfig())]
    found = forecast(profile, terms, Precision(name="fp32", weights="float32", compute="float32", why=""), 8)
    assert found.gradients == 4 * trainable
    assert found.optimizer == 8 * trainable
