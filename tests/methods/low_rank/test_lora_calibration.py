"""What `eva` and `corda` keep of the inputs they watch, and which inputs they refuse."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from luthier.core.contracts import NothingPatched
from luthier.core.frozen import FrozenDict
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.plugins.lora import LoraConfig, calibration, supports


def test_eva_lets_go_of_a_batch_that_it_has_seen() -> None:
    directions = calibration.Directions(4, 32)
    for _ in range(3):
        directions.add(torch.randn(5000, 32))
        held = sum(rows.untyped_storage().nbytes() for rows in directions.pending)
        assert held == directions.smallest * 32 * 4


def test_corda_holds_no_covariance_that_it_has_used(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is gone before its product is decomposed; q, k and v share one, and so do gate and up."""
    made: list[weakref.ref[calibration.Covariance]] = []
    waiting: list[int] = []

    class Counted(calibration.Covariance):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    svd = torch.linalg.svd

    def counted(*given: Any, **options: Any) -> Any:
        waiting.append(sum(one() is not None for one in made))
        return svd(*given, **options)

    monkeypatch.setattr(calibration, "Covariance", Counted)
    monkeypatch.setattr(torch.linalg, "svd", counted)
    kit.attach("llama", rank=2, init="corda", init_batches=1)
    assert waiting == [7, 7, 7, 6, 5, 5, 4, 3, 3, 3, 2, 1, 1, 0]


def test_a_covariance_is_normalised_in_place() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    covariance = calibration.Covariance()
    covariance.add(rows[:25])
    held = covariance.total
    assert isinstance(held, torch.Tensor)
    covariance.add(rows[25:])
    found = covariance.finish()
    assert found.data_ptr() == held.data_ptr()
    exact = rows.double().T @ rows.double()
    expected = exact / (exact.trace() / 8) + 0.01 * torch.eye(8, dtype=torch.float64)
    assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_routed_experts_of_their_own_are_refused(init: Any) -> None:
    group = RoleGroup(
        pattern="model.layers.*.mlp.experts.*.up", kind="linear", shape=(16, 8), in_features=8, out_features=16,
        layers=(0, 1), experts=4,
    )  # fmt: skip
    profile = ArchitectureProfile(
        model_type="toy", architecture="Toy", decoder="model.layers", layers=2, layer_classes=("Layer",), hidden_size=8,
        vocab_size=10, roles=FrozenDict({"mlp.experts": (group,)}),
    )  # fmt: skip
    here: Any = None  # the machine is not asked about
    answer = supports(profile, here, LoraConfig(rank=2, target=("experts",), init=init))
    assert not answer
    assert f"init {init}" in answer.reason
    assert "model.layers.*.mlp.experts.*.up is a routed expert" in answer.reason
    assert supports(profile, here, LoraConfig(rank=2, target=("experts",), init="pissa"))


@pytest.mark.parametrize("shape", [(4, 8), (3, 2, 8), (1, 6, 8), (2, 3, 2, 4)])
def test_inputs_that_are_not_by_token_are_refused(shape: tuple[int, ...]) -> None:
    """The tokens of one expert, turned round, in one row, or by head; the module is named."""
    watch = calibration.Watch(lambda features: calibration.Covariance())
    watch.mask = torch.ones(2, 3, dtype=torch.bool)
    see = watch.hook("model.layers.0.block.up")
    with pytest.raises(NothingPatched, match=r"model\.layers\.0\.block\.up sees a tensor .* for a batch of 2 x 3 tokens"):
        see(torch.nn.Identity(), (torch.zeros(shape),))


def test_inputs_with_the_tokens_of_all_rows_in_one_are_the_same() -> None:
    """Shared experts (Qwen2-MoE) are given them so."""
    inputs = torch.randn(2, 3, 8)
    found = []
    for given in (inputs, inputs.reshape(6, 8)):
        watch = calibration.Watch(lambda features: calibration.Covariance())
        watch.mask = torch.tensor([[True, True, True], [True, False, False]])
        watch.hook("up")(torch.nn.Identity(), (given,))
        found.append(dict(watch.finish())["up"])
    assert torch.equal(*found)
