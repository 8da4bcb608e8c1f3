"""`peft`: what is said of each of PEFT's tuners is so, and those that do not work here are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft as library
import pytest
import torch

from luthier.core.environment import Environment
from luthier.core.saving import load_trained, save_trained
from luthier.plugins import peft
from luthier.plugins.peft import PeftConfig
from luthier.plugins.peft.tuners import REFUSED, TUNERS
from luthier.registry.catalog import discover
from tests.methods.peft_tuners import config_of, logits, loss, shake, trained, usual_first

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)


def test_every_tuner_of_peft_is_taken_or_refused() -> None:
    known = {name.value.lower() for name in library.PeftType}
    assert set(TUNERS) <= known
    assert set(TUNERS).isdisjoint(REFUSED)
    assert set(REFUSED) - known == {"bone"}  # renamed
    assert known <= set(TUNERS) | set(REFUSED)


@pytest.mark.parametrize("tuner", REFUSED)
def test_refused_with_a_reason(tuner: str, load: Load) -> None:
    _, profile = load("llama")
    refusal = peft.supports(profile, HERE, PeftConfig(tuner=tuner))
    assert refusal.kind == "no"
    assert tuner in refusal.reason
    assert refusal.fix
    assert peft.memory(profile, PeftConfig(tuner=tuner)).trainable == 0


def extra_bytes(adapted: torch.nn.Module, base: torch.nn.Module) -> int:
    """Bytes of the frozen tensors that the adapter brought along."""
    held = [*adapted.parameters(), *adapted.buffers()]
    return sum(one.nbytes for one in held if not one.requires_grad) - sum(
        one.nbytes for one in [*base.parameters(), *base.buffers()]
    )


@pytest.mark.parametrize("tuner", TUNERS)
def test_what_is_declared_of_a_tuner_is_so(tuner: str, load: Load, ids: Any) -> None:
    """Parameters and frozen bytes, start, switching off, folding in."""
    model, profile = load("llama")
    plain, _ = load("llama")
    config = config_of(tuner)
    assert peft.supports(profile, HERE, config)
    declared = peft.declares(profile, config).provides
    base = logits(model, ids)
    adapted: Any = peft.attach(model, profile, config)
    terms, found = peft.memory(profile, config), trained(adapted)
    assert terms.trainable == terms.added == sum(parameter.numel() for parameter in found.values())
    assert terms.trainable == sum(matrix.size * matrix.count for matrix in terms.matrices)
    if tuner != "shira":  # keeps its indices beside torch's buffers
        assert terms.constant == extra_bytes(adapted, plain)
    assert {parameter.dtype for parameter in found.values()} == {torch.float32}
    unchanged = bool((logits(adapted, ids) - base).abs().max() < 1e-6)
    assert unchanged == ("reference.by_disabling" in declared)
    loss(adapted, ids).backward()
    assert all(parameter.grad is not None for parameter in found.values())
    shake(adapted)
    changed = logits(adapted, ids)
    assert (changed - base).abs().max() > 1e-4
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), base)
    if "adapter.mergeable" in declared:
        assert (logits(peft.merge(adapted), ids) - changed).abs().max() < 1e-5
    else:
        with pytest.raises((AttributeError, ValueError, NotImplementedError)):
            peft.merge(adapted)


@pytest.mark.parametrize("tuner", usual_first(TUNERS))
def test_saved_it_loads_here_and_in_plain_peft(tuner: str, load: Load, ids: Any, tmp_path: Path) -> None:
    method: Any = discover().method("adapter", "peft")
    model, profile = load("llama")
    adapted = peft.attach(model, profile, config_of(tuner))
    shake(adapted)
    expected = logits(adapted, ids)
    save_trained(adapted, tmp_path, method)
    torch.manual_seed(7)  # another start: what was drawn at attach has to come from the file
    again = load_trained(peft.attach(load("llama")[0], profile, config_of(tuner)), tmp_path, method, trainable=True)
    assert (logits(again, ids) - expected).abs().max() < 1e-6
    assert all(torch.equal(tensor, trained(adapted)[name]) for name, tensor in trained(again).items())
    plain = library.PeftModel.from_pretrained(load("llama")[0], str(tmp_path))
    assert (logits(plain, ids) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("tuner", usual_first(TUNERS))
def test_float32_beside_bfloat16(tuner: str, load: Load, ids: Any) -> None:
    model, profile = load("llama")
    single = float(loss(peft.attach(load("llama")[0], profile, config_of(tuner, **unchanged(tuner))), ids).detach())
    adapted = peft.attach(model.to(torch.bfloat16), profile, config_of(tuner, **unchanged(tuner)))
    half = loss(adapted, ids)
    half.backward()
    for parameter in trained(adapted).values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    if TUNERS[tuner].kind != "prompt":  # whose random start is another each time
        assert float(half.detach()) == pytest.approx(single, rel=0.02)


def unchanged(tuner: str) -> dict[str, Any]:
    return {"init_weights": True} if TUNERS[tuner].starts == "if_asked" else {}


@pytest.mark.parametrize("tuner", [name for name, tuner in TUNERS.items() if tuner.starts == "if_asked"])
def test_asked_to_they_start_as_the_base(tuner: str, load: Load, ids: Any) -> None:
    model, profile = load("llama")
    base, config = logits(model, ids), config_of(tuner, init_weights=True)
    assert "reference.by_disabling" in peft.declares(profile, config).provides
    assert torch.equal(logits(peft.attach(model, profile, config), ids), base)


def test_a_random_start_is_no_reference(load: Load, ids: Any) -> None:
    model, profile = load("llama")
    base, config = logits(model, ids), config_of("vera", init_weights=False)
    assert "reference.by_disabling" not in peft.declares(profile, config).provides
    assert (logits(peft.attach(model, profile, config), ids) - base).abs().max() > 1e-3


@pytest.mark.parametrize("tuner", usual_first(name for name, tuner in TUNERS.items() if tuner.kind == "weights"))
def test_conv1d_where_the_table_says_so(tuner: str, load: Load, ids: Any) -> None:
    model, profile = load("gpt2")
    config = config_of(tuner)
    support = peft.supports(profile, HERE, config)
    if not TUNERS[tuner].conv1d:
        assert "Conv1D" in support.reason
        linear, _ = load("gpt2")
        with pytest.raises((TypeError, ValueError, NotImplementedError, RuntimeError)):
            loss(peft.attach(linear, profile, config), ids).backward()
        return
    base = logits(model, ids)
    adapted = peft.attach(model, profile, config)
    assert peft.memory(profile, config).trainable == sum(parameter.numel() for parameter in trained(adapted).values())
    shake(adapted)
    changed = logits(adapted, ids)
    assert (changed - base).abs().max() > 1e-5
    assert (logits(peft.merge(adapted), ids) - changed).abs().max() < 1e-5


@pytest.mark.parametrize("tuner", ["ia3", "vera", "lily", "ln_tuning", "prefix_tuning"])
def test_counted_on_every_kind(tuner: str, kind: str, load: Load, ids: Any) -> None:
    model, profile = load(kind)
    config = config_of(tuner)
    if kind == "gpt2":
        model.config.__dict__.pop("num_key_value_heads", None)  # gpt2 has no such key; the tiny folder's config does
    if not peft.supports(profile, HERE, config):
        assert (kind, tuner) == ("gpt2", "lily")
        return
    adapted = peft.attach(model, profile, config)
    assert peft.memory(profile, config).trainable == sum(parameter.numel() for parameter in trained(adapted).values())
    loss(adapted, ids).backward()


def test_counts_by_the_papers_formulas(load: Load) -> None:
    """Two layers of 64 features, 32 for keys and values, 128 inside the MLP."""
    _, profile = load("llama")

    def size(tuner: str, **options: Any) -> int:
        return peft.memory(profile, PeftConfig(tuner=tuner, options=options)).trainable

    assert size("ia3") == 2 * (32 + 32 + 128)  # arXiv:2205.05638, section 3.3: l_k, l_v, l_ff
    assert size("vera", r=4) == 2 * (7 * 4 + 64 + 32 + 32 + 64 + 128 + 128 + 64)  # arXiv:2310.11454: d and b of each module
    assert size("ln_tuning") == 5 * 64
    assert size("prompt_tuning", num_virtual_tokens=5) == 5 * 64
    assert size("prefix_tuning", num_virtual_tokens=5) == 5 * 2 * 2 * 32  # keys and values of every layer
    assert size("fourierft", n_frequency=10) == 14 * 10  # arXiv:2405.03003: n for each module
    assert size("shira", r=1) == 2 * (2 * 128 + 2 * 96 + 3 * 192)


def test_targets_are_words_of_the_model(load: Load) -> None:
    model, profile = load("llama")
    config = PeftConfig(tuner="ia3", target=("attn.v", "mlp"), exclude=("mlp.up",), layers=(-1,))
    adapted: Any = peft.attach(model, profile, config)
    names = {name.split(".ia3_l")[0].partition("layers.")[2] for name in trained(adapted)}
    assert names == {"1.self_attn.v_proj", "1.mlp.gate_proj", "1.mlp.down_proj"}
    layer = adapted.base_model.model.model.layers[1]
    assert layer.mlp.down_proj.is_feedforward
    assert not layer.mlp.gate_proj.is_feedforward
    assert not layer.self_attn.v_proj.is_feedforward


@pytest.mark.parametrize(
    ("config", "reason", "fix"),
    [
        (PeftConfig(tuner="vera", options={"rr": 4}), "options.rr: unknown key", "did you mean `r`?"),
        (PeftConfig(tuner="vera", options={"r": "4"}), "options.r: must be a whole number", "without quotes"),
        (PeftConfig(tuner="vera", options={"r": 4.5}), "options.r: must be a whole number", ""),
        (PeftConfig(tuner="miss", options={"init_weights": "bad"}), "options.init_weights: must be", "bat"),
        (PeftConfig(tuner="ia3", options={"target_modules": ["q_proj"]}), "target_modules", "`target` beside"),
        (PeftConfig(tuner="ia3", options={"modules_to_save": ["lm_head"]}), "base model would train", "leave it out"),
        (PeftConfig(tuner="c3a", options={"block_size": 24}), "does not take them", "options"),
        (PeftConfig(tuner="shira", options={"r": 1000}), "does not take them", "options"),
        (PeftConfig(tuner="vblora", options={"vector_length": 16, "save_only_topk_weights": True}), "resumed", "leave"),
        (PeftConfig(tuner="pvera", options={"generator_seed": 1}), "generator", "leave"),
        (PeftConfig(tuner="prompt_tuning"), "num_virtual_tokens", "num_virtual_tokens"),
        (
            PeftConfig(tuner="prompt_tuning", options={"num_virtual_tokens": 4, "prompt_tuning_init": "NOISE"}),
            "options.prompt_tuning_init: must be one of",
            "",
        ),
        (
            PeftConfig(tuner="prefix_tuning", options={"num_virtual_tokens": 4, "prefix_projection": True}),
            "resumed",
            "leave",
        ),
        (PeftConfig(tuner="prompt_tuning", target=("attn",), options={"num_virtual_tokens": 4}), "no modules", "leave out"),
        (PeftConfig(tuner="ln_tuning", target=("attn",)), "no norm", "norm"),
        (PeftConfig(tuner="vera", target=("mixer",)), "mixer", ""),
        (PeftConfig(tuner="vera", layers=(5,)), "5", "layers go from"),
    ],
)
def test_options_are_checked_while_planning(config: PeftConfig, reason: str, fix: str, load: Load) -> None:
    _, profile = load("llama")
    refusal = peft.supports(profile, HERE, config)
    assert refusal.kind == "no"
    assert reason in refusal.reason
    assert fix in refusal.fix


@pytest.mark.parametrize(("name", "words"), [("ia4", "did you mean `ia3`"), ("nothing at all", "known are")])
def test_a_name_that_is_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PeftConfig(tuner=name)


def test_the_page_says_of_each_tuner_what_the_table_says() -> None:
    """docs/methods/peft.md, written for people, row by row."""
    page = (Path(__file__).parents[2] / "docs" / "methods" / "peft.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 8}
    assert set(rows) == set(TUNERS)
    stored = {"any": "4 and 8 bits", "8bit": "8 bits", "none": "no"}
    for name, tuner in TUNERS.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert cells[4] == ("yes" if tuner.mergeable else "no")
        assert cells[5] == ("yes" if tuner.conv1d else "no")
        assert cells[6] == stored[tuner.quantised]
        assert tuner.paper in cells[7]
    assert all(f"| `{name}` | {reason} | {fix} |" in page for name, (reason, fix) in REFUSED.items())
