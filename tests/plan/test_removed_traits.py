"""A method that makes a trait of the model untrue of the run, and what a quantised checkpoint needs without one."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.contracts import Declaration, Support
from luthier.core.errors import ExitCode
from luthier.core.frozen import FrozenDict
from luthier.core.prequantized import traits_of
from luthier.core.profile import Quantization, RoleGroup

STORED = frozenset({"model.prequantized", "weights.quantized"})
PACKED = Quantization(
    method="squash", bits=4, packages=("squasher>=2",), dequantize="load", settings=FrozenDict({"group_size": 4})
)


def packed(shop: Any, profiles: Any, **changes: Any) -> Any:
    """The shop with a model that arrives quantised, and a patch that loads it plain."""
    values = {name: getattr(PACKED, name) for name in ("method", "bits", "packages", "dequantize", "settings")}
    quantization = Quantization(**(values | changes))
    group = RoleGroup(
        pattern="model.layers.*.q", kind="linear", shape=(10, 10), in_features=10, out_features=10, layers=(0, 1, 2, 3)
    )
    shop.profile = profiles(
        traits=frozenset({"model.attention"}) | traits_of(quantization),
        prequantized=quantization.method,
        quantization=quantization,
        roles=FrozenDict({"attn.q": (group,)}),
    )
    return shop.add("patches", "unpack", removes=STORED, claims=frozenset({"weights.storage"}))


def test_what_is_removed_is_no_fact_of_the_run(shop: Any, profiles: Any) -> None:
    packed(shop, profiles, packages=())
    assert set(shop.plan().traits) >= STORED
    assert not STORED & set(shop.plan(patches=["unpack"]).traits)


def test_a_method_that_minds_the_trait_combines_then(shop: Any, profiles: Any) -> None:
    packed(shop, profiles, packages=())
    shop.add("adapter", "all", conflicts=STORED)
    refused = shop.refused(adapter="all")
    assert len(refused.problems) == 2
    assert all(problem.fix == "take adapter: thin or whole, or add patches: unpack" for problem in refused.problems)
    assert shop.plan(adapter="all", patches=["unpack"]).step("adapter").method == "all"


def test_a_need_is_not_met_by_what_was_removed(shop: Any, profiles: Any) -> None:
    from luthier.core.traits import any_of

    packed(shop, profiles, packages=())
    shop.add("adapter", "packer", requires=(any_of("weights.quantized"),))
    assert shop.plan(adapter="packer")
    (problem,) = shop.refused(adapter="packer", patches=["unpack"]).problems
    assert "adapter: packer needs weights.quantized" in problem.reason


def test_what_another_method_provides_stays(shop: Any, profiles: Any) -> None:
    """Only what held before any method is taken away."""
    packed(shop, profiles, packages=())
    shop.add("patches", "pack", provides=frozenset({"weights.quantized"}))
    assert "weights.quantized" in shop.plan(patches=["unpack", "pack"]).traits
    assert "model.prequantized" not in shop.plan(patches=["unpack", "pack"]).traits


def test_removing_can_depend_on_the_model(shop: Any, profiles: Any) -> None:
    packed(shop, profiles, packages=())
    shop.add("patches", "perhaps", declares=lambda profile, config: Declaration(removes=profile.traits & STORED))
    assert not STORED & set(shop.plan(patches=["perhaps"]).traits)


def test_packages_of_the_stored_weights_are_an_environment_problem(shop: Any, profiles: Any) -> None:
    packed(shop, profiles)
    refused = shop.refused()
    (problem,) = refused.problems
    assert refused.code == ExitCode.ENVIRONMENT
    assert problem.where == "model"
    assert problem.reason == "the weights are stored quantised (squash), which needs squasher>=2 (not installed)"
    assert problem.fix == 'pip install "squasher>=2", or add patches: unpack'
    assert shop.plan(patches=["unpack"])


def test_with_the_packages_it_plans(shop: Any, profiles: Any, environments: Any) -> None:
    packed(shop, profiles)
    shop.environment = environments(packages=FrozenDict({"squasher": "2.1"}))
    assert shop.plan()
    shop.environment = environments(packages=FrozenDict({"squasher": "1.9"}))
    assert "found 1.9" in shop.refused().problems[0].reason


def test_a_device_that_is_not_there_is_an_environment_problem(shop: Any, profiles: Any, environments: Any) -> None:
    packed(shop, profiles, packages=(), cuda=True)
    assert shop.refused().code == ExitCode.ENVIRONMENT
    shop.environment = environments(device="cuda")
    assert shop.plan()


def test_weights_that_cannot_be_trained_on_are_refused_with_the_reason(shop: Any, profiles: Any) -> None:
    packed(shop, profiles, untrainable="its kernels have no backward")
    refused = shop.refused()
    (problem,) = refused.problems
    assert refused.code == ExitCode.REFUSED
    assert "cannot be trained on: its kernels have no backward" in problem.reason
    assert problem.fix == "add patches: unpack, or take a checkpoint that is not quantised"
    assert shop.plan(patches=["unpack"])


def test_a_patch_that_cannot_be_used_is_no_way_out(shop: Any, profiles: Any) -> None:
    packed(shop, profiles, untrainable="its kernels have no backward")
    shop.methods = [method for method in shop.methods if method.name != "unpack"]
    shop.add("patches", "unpack", removes=STORED, supports=lambda *_: Support.no("not this one"))
    assert shop.refused().problems[0].fix == "take a checkpoint that is not quantised"


def test_stored_weights_are_predicted_as_they_are_stored(shop: Any, profiles: Any) -> None:
    """400 of 1000 parameters at 4 bits and a 16-bit scale for every 4 of them, the others and all of them in float32."""
    packed(shop, profiles, packages=())
    adapter = 4 * 80
    assert shop.plan().memory.weights == 600 * 4 + 400 * (4 / 8 + 2 / 4) + adapter
    assert shop.plan(patches=["unpack"]).memory.weights == 1000 * 4 + adapter


@pytest.mark.parametrize(("bits", "expected"), [(4, "weights.quantized.4bit"), (8, "weights.quantized.8bit"), (3, None)])
def test_traits_of_stored_weights(bits: int, expected: str | None) -> None:
    found = traits_of(Quantization(method="squash", bits=bits, dora=True))
    assert found == STORED | ({expected} if expected else set())
    assert ("weights.no_dora" in traits_of(Quantization(method="squash", bits=bits))) == (bits != 8)
