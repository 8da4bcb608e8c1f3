"""The hook points: what a plugin may offer. A newcomer starts here.

A plugin is any importable object named in the entry-point group `luthier.plugins`, usually a module. It marks
functions with `@hookimpl`; each returns descriptions and has no side effects. Installed never means active: the
configuration selects. Every hook is called on its own plugin only, so neither pluggy's call order nor `firstresult`
ever decides a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pluggy

from luthier.core.contracts import Adapter, AttentionKernel, ModelPatch, OptimizerMethod, TrainingStage
from luthier.core.extensions import ArchitectureFamily, Command, DataFormat, Preset, RunEvent

PROJECT: Final = "luthier"
ENTRY_POINT_GROUP: Final = "luthier.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# What each hook returns an iterable of; None for the one hook that is told things and returns nothing.
HOOKS: Final[dict[str, type[Any] | None]] = {
    "luthier_model_patches": ModelPatch,
    "luthier_adapters": Adapter,
    "luthier_optimizers": OptimizerMethod,
    "luthier_attention_kernels": AttentionKernel,
    "luthier_training_stages": TrainingStage,
    "luthier_data_formats": DataFormat,
    "luthier_presets": Preset,
    "luthier_architectures": ArchitectureFamily,
    "luthier_commands": Command,
    "luthier_event": None,
}


class HookSpecs:
    """One method per hook point; docs/hooks/ has a page for each, with a runnable example."""

    @hookspec
    def luthier_model_patches(self) -> Iterable[ModelPatch[Any]]:  # type: ignore[empty-body]
        """Patches of the model's code or weights.

        >>> from luthier.core.contracts import ModelPatch
        >>> from luthier.core.hookspecs import hookimpl
        >>> def apply(model, profile, config):
        ...     before = model.training
        ...     model.eval()
        ...     return lambda: model.train(before)
        >>> @hookimpl
        ... def luthier_model_patches():
        ...     yield ModelPatch(name="always-eval", summary="Keeps the model in evaluation mode.", apply=apply)
        >>> next(luthier_model_patches()).phase
        'loaded'
        """

    @hookspec
    def luthier_adapters(self) -> Iterable[Adapter[Any]]:  # type: ignore[empty-body]
        """Adapters: which parameters train.

        >>> from luthier.core.contracts import Adapter
        >>> from luthier.core.hookspecs import hookimpl
        >>> def attach(model, profile, config):
        ...     trained = set(profile.modules("norm"))
        ...     for name, parameter in model.named_parameters():
        ...         parameter.requires_grad_(name.rpartition(".")[0] in trained)
        ...     return model
        >>> @hookimpl
        ... def luthier_adapters():
        ...     yield Adapter(
        ...         name="norms", summary="Trains the norms only.", provides=frozenset({"base.partly_frozen"}), attach=attach
        ...     )
        >>> next(luthier_adapters()).slot
        'adapter'
        """

    @hookspec
    def luthier_optimizers(self) -> Iterable[OptimizerMethod[Any]]:  # type: ignore[empty-body]
        """Optimizers.

        >>> from dataclasses import dataclass
        >>> from luthier.core.contracts import OptimizerMethod
        >>> from luthier.core.hookspecs import hookimpl
        >>> from luthier.core.options import option
        >>> from luthier.core.schedule import OptimizerOptions
        >>> @dataclass(frozen=True, kw_only=True)
        ... class MomentumConfig(OptimizerOptions):
        ...     momentum: float = option(0.9, "Decay of the running gradient.", ge=0, lt=1)
        >>> def build(model, config):
        ...     import torch
        ...     trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ...     return torch.optim.SGD(trained, lr=config.lr, momentum=config.momentum), ()
        >>> @hookimpl
        ... def luthier_optimizers():
        ...     yield OptimizerMethod(name="momentum", summary="SGD with momentum.", config=MomentumConfig, build=build)
        >>> next(luthier_optimizers()).config().momentum
        0.9
        """

    @hookspec
    def luthier_attention_kernels(self) -> Iterable[AttentionKernel[Any]]:  # type: ignore[empty-body]
        """Attention kernels, by the name transformers' AttentionInterface knows them by.

        >>> from luthier.core.contracts import AttentionKernel, Support
        >>> from luthier.core.hookspecs import hookimpl
        >>> @hookimpl
        ... def luthier_attention_kernels():
        ...     yield AttentionKernel(
        ...         name="flex",
        ...         summary="torch's flex_attention, compiled.",
        ...         implementation="flex_attention",
        ...         supports=lambda profile, environment, config: (
        ...             Support.yes() if environment.device == "cuda" else Support.missing("flex has no backward on the CPU")
        ...         ),
        ...     )
        >>> next(luthier_attention_kernels()).implementation
        'flex_attention'
        """

    @hookspec
    def luthier_training_stages(self) -> Iterable[TrainingStage[Any]]:  # type: ignore[empty-body]
        """Training stages: what is learned, from which kind of data.

        >>> from luthier.core.contracts import TrainingStage
        >>> from luthier.core.hookspecs import hookimpl
        >>> def run(runtime, config):
        ...     return {"parameters": float(sum(p.numel() for p in runtime.model.parameters()))}
        >>> @hookimpl
        ... def luthier_training_stages():
        ...     yield TrainingStage(name="count", summary="Counts, trains nothing.", data_kind="text", run=run)
        >>> next(luthier_training_stages()).data_kind
        'text'
        """

    @hookspec
    def luthier_data_formats(self) -> Iterable[DataFormat]:  # type: ignore[empty-body]
        """Data formats: how a row says what to learn from.

        >>> from luthier.core.extensions import DataFormat
        >>> from luthier.core.hookspecs import hookimpl
        >>> def convert(row):
        ...     pair = ({"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]})
        ...     return {"messages": list(pair)}
        >>> @hookimpl
        ... def luthier_data_formats():
        ...     yield DataFormat(
        ...         name="qa", summary="Question and answer.", kind="conversation", columns="q, a",
        ...         detect=lambda row: {"q", "a"} <= row.keys(), convert=convert,
        ...     )
        >>> next(luthier_data_formats()).convert({"q": "Two and two?", "a": "Four."})["messages"][1]["content"]
        'Four.'
        """

    @hookspec
    def luthier_presets(self) -> Iterable[Preset]:  # type: ignore[empty-body]
        """Presets: names for combinations.

        >>> from luthier.core.extensions import Preset
        >>> from luthier.core.hookspecs import hookimpl
        >>> @hookimpl
        ... def luthier_presets():
        ...     yield Preset(
        ...         name="frugal", slot="adapter", summary="LoRA with checkpointing.",
        ...         config={"adapter": {"use": "lora", "rank": 4}, "patches": ["checkpointing"]},
        ...     )
        >>> next(luthier_presets()).slot
        'adapter'
        """

    @hookspec
    def luthier_architectures(self) -> Iterable[ArchitectureFamily]:  # type: ignore[empty-body]
        """Architecture families: data for models that detection misses.

        >>> from luthier.core.extensions import ArchitectureFamily
        >>> from luthier.core.hookspecs import hookimpl
        >>> @hookimpl
        ... def luthier_architectures():
        ...     roles = {"attn.qkv": "net.blocks.*.mix_in", "attn.o": "net.blocks.*.mix_out"}
        ...     yield ArchitectureFamily(name="mylab", model_types=("mylab-lm",), roles=roles)
        >>> sorted(next(luthier_architectures()).roles)
        ['attn.o', 'attn.qkv']
        """

    @hookspec
    def luthier_commands(self) -> Iterable[Command]:  # type: ignore[empty-body]
        """Verbs of the command line.

        >>> from luthier.core.extensions import Command
        >>> from luthier.core.hookspecs import hookimpl
        >>> def hello(arguments):
        ...     print("hello", *arguments)
        ...     return 0
        >>> @hookimpl
        ... def luthier_commands():
        ...     yield Command(name="hello", summary="Says hello.", run=hello)
        >>> next(luthier_commands()).run(["you"])
        hello you
        0
        """

    @hookspec
    def luthier_event(self, event: RunEvent) -> None:
        """Observes a run; an error raised here is logged and counted, never raised into the run.

        >>> from luthier.core.extensions import RunEvent
        >>> from luthier.core.frozen import FrozenDict
        >>> from luthier.core.hookspecs import hookimpl
        >>> losses = []
        >>> @hookimpl
        ... def luthier_event(event):
        ...     if event.kind == "step":
        ...         losses.append(event.values["loss"])
        >>> luthier_event(RunEvent(kind="step", values=FrozenDict({"loss": 1.5})))
        >>> losses
        [1.5]
        """
