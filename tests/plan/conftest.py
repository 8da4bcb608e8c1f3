"""A workshop of small made-up methods: the resolver's rules are tested on these, never on the built-ins.

The standard set: stage `teach`, adapters `thin` (frozen base) and `whole`, optimizer `climb`, attention `plain`; no patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from luthier.core.catalog import BrokenPlugin, Catalog, Offer, Provider
from luthier.core.config import RunConfig, parse_config
from luthier.core.contracts import (
    SLOTS,
    Adapter,
    AnyMethod,
    AttentionKernel,
    MemoryTerms,
    ModelPatch,
    OptimizerMethod,
    TrainingStage,
)
from luthier.core.environment import Environment
from luthier.core.errors import PlanRefused
from luthier.core.extensions import Preset
from luthier.core.frozen import FrozenDict
from luthier.core.options import option
from luthier.core.plan import ModelReference, Plan, SourceSummary
from luthier.core.profile import ArchitectureProfile, AttentionGroup
from luthier.core.resolve import resolve
from luthier.core.schedule import OptimizerOptions

PROVIDER = Provider(plugin="workshop", distribution="luthier-workshop", version="1.0")


@dataclass(frozen=True, kw_only=True)
class ThinOptions:
    rank: int = option(8, "Rank.", ge=1, le=64)
    init: Literal["zero", "principal"] = option("zero", "Start.")
    target: tuple[str, ...] = option(("attn",), "Roles.")


@dataclass(frozen=True, kw_only=True)
class ClimbOptions(OptimizerOptions):
    momentum: float = option(0.9, "Momentum.", ge=0, lt=1)


def nothing(*args: Any, **more: Any) -> Any:
    raise AssertionError("a plan must not run anything")


REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "patches": {"apply": nothing},
    "adapter": {"attach": nothing},
    "optimizer": {"build": nothing},
    "attention": {"implementation": "eager"},
    "stage": {"run": nothing, "data_kind": "conversation"},
}
KINDS: Mapping[str, type[AnyMethod]] = {
    "patches": ModelPatch,
    "adapter": Adapter,
    "optimizer": OptimizerMethod,
    "attention": AttentionKernel,
    "stage": TrainingStage,
}


def profile_of(**changes: Any) -> ArchitectureProfile:
    values: dict[str, Any] = {
        "model_type": "toy",
        "architecture": "ToyForCausalLM",
        "decoder": "model.layers",
        "layers": 4,
        "layer_classes": ("ToyLayer",),
        "hidden_size": 8,
        "vocab_size": 100,
        "intermediate_size": 16,
        "attention": (AttentionGroup(kind="gqa", layers=(0, 1, 2, 3), heads=4, kv_heads=2, head_dim=2),),
        "parameters": 1000,
        "traits": frozenset({"model.attention"}),
    }
    return ArchitectureProfile(**{**values, **changes})


def environment_of(**changes: Any) -> Environment:
    values: dict[str, Any] = {"python": "3.11", "platform": "linux", "cpu": "toy", "cores": 2, "memory": 2**33}
    return Environment(**{**values, **changes})


class Workshop:
    """Builds a catalog, a model and a machine by hand and plans with them."""

    def __init__(self) -> None:
        self.methods: list[AnyMethod] = []
        self.presets: list[Preset] = []
        self.broken: list[BrokenPlugin] = []
        self.profile = profile_of()
        self.environment = environment_of()
        self.data: tuple[SourceSummary, ...] = ()
        self.model = ModelReference(name="m", path="/models/m", kind="folder")

    def add(self, slot: str, name: str, **fields: Any) -> Workshop:
        self.methods.append(KINDS[slot](**{"name": name, "summary": name, **REQUIRED[slot], **fields}))
        return self

    def preset(self, slot: str, name: str, config: Mapping[str, Any]) -> Workshop:
        self.presets.append(Preset(name=name, slot=slot, summary=name, config=config))
        return self

    def break_plugin(self, plugin: str, error: str, *names: str) -> Workshop:
        self.broken.append(
            BrokenPlugin(provider=Provider(plugin=plugin, distribution=plugin, version="2.0"), error=error, names=names)
        )
        return self

    def rows(self, *kinds: str) -> Workshop:
        self.data = tuple(
            SourceSummary(path=f"{kind}{index}.jsonl", format="made-up", kind=kind, rows=3, why="told")
            for index, kind in enumerate(kinds)
        )
        return self

    @property
    def catalog(self) -> Catalog:
        methods = {
            slot: FrozenDict({one.name: Offer(value=one, provider=PROVIDER) for one in self.methods if one.slot == slot})
            for slot in SLOTS
        }
        presets = {
            slot: FrozenDict({one.name: Offer(value=one, provider=PROVIDER) for one in self.presets if one.slot == slot})
            for slot in SLOTS
        }
        return Catalog(methods=FrozenDict(methods), presets=FrozenDict(presets), broken=tuple(self.broken))

    def config(self, **keys: Any) -> RunConfig:
        return parse_config({"model": "m", "data": {"train": ["rows.jsonl"]}, **keys})

    def resolve(self, config: RunConfig) -> Plan:
        return resolve(
            config,
            model=self.model,
            profile=self.profile,
            environment=self.environment,
            catalog=self.catalog,
            data=self.data,
        )

    def plan(self, **keys: Any) -> Plan:
        return self.resolve(self.config(**keys))

    def refused(self, **keys: Any) -> PlanRefused:
        with pytest.raises(PlanRefused) as caught:
            self.plan(**keys)
        return caught.value

    def taken(self, **keys: Any) -> dict[str, str]:
        """slot -> method; the patches joined by commas."""
        steps: dict[str, str] = {}
        for step in self.plan(**keys).steps:
            steps[step.slot] = f"{steps[step.slot]},{step.method}" if step.slot in steps else step.method
        return steps


@pytest.fixture
def bare() -> Workshop:
    """A workshop without any method."""
    return Workshop()


@pytest.fixture
def shop() -> Workshop:
    """A workshop with the standard set."""
    made = Workshop()
    made.add("stage", "teach", priority=10)
    made.add(
        "adapter",
        "thin",
        priority=10,
        config=ThinOptions,
        provides=frozenset({"base.frozen", "adapter.low_rank"}),
        memory=lambda profile, config: MemoryTerms(trainable=10 * config.rank, added=10 * config.rank, trainable_bytes=4),
    )
    made.add(
        "adapter",
        "whole",
        priority=5,
        provides=frozenset({"params.full_rank"}),
        memory=lambda profile, config: MemoryTerms(trainable=profile.parameters),
    )
    made.add(
        "optimizer",
        "climb",
        priority=10,
        config=ClimbOptions,
        memory=lambda profile, config: MemoryTerms(optimizer_bytes=8),
    )
    made.add("attention", "plain", priority=10)
    return made


@pytest.fixture
def new_shop(request: pytest.FixtureRequest) -> Callable[[], Workshop]:
    """For tests that need several workshops: each call gives an empty one."""
    return Workshop


@pytest.fixture
def profiles() -> Callable[..., ArchitectureProfile]:
    return profile_of


@pytest.fixture
def environments() -> Callable[..., Environment]:
    return environment_of
