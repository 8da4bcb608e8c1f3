"""The contract of training stages: a small run through the real plan and engine, and the same run stopped and resumed.

The run is that of a user: rows in a file, the planned methods, an output folder. Two of its methods are the kit's own, so
that what moved can be looked at: an adapter that trains the last decoder layer, and AdamW.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
import torch

from luthier.core.contracts import Adapter, MemoryTerms, OptimizerMethod, Task, TrainingStage
from luthier.core.engine import execute
from luthier.core.errors import Interrupted
from luthier.core.extensions import RunEvent
from luthier.core.frozen import FrozenDict, thaw
from luthier.core.optimizing import decay_groups
from luthier.core.options import NoOptions
from luthier.core.packed_masks import why_documents_mix
from luthier.core.resolve.picks import Situation
from luthier.core.schedule import OptimizerOptions
from luthier.core.scoring import profile_for, score_modules
from luthier.core.testing import measuring
from luthier.core.testing.contract import Case, Contract, with_methods
from luthier.core.testing.surroundings import installed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.profile import ArchitectureProfile

WORDS: Final = ("ash", "birch", "cedar", "elm", "fir", "larch", "maple", "oak", "pine", "rowan", "willow", "yew")
STEPS: Final = 6
STOPPED: Final = 3
ALL_ROWS: Final = 8192  # tokens of a micro-batch into which every row of the kit fits, padded or not
PACKS: Final = "stage.packs"
RECURRENT: Final = "model.recurrent"

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass
class Ran:
    """One run: what it and its stage returned; the model, and its tensors from before, of what trains and of the rest."""

    model: Any = None
    moving: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    rest: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)


class TrainingStageContract(Contract):
    """For a `TrainingStage`. See `Contract` for what can be set, and besides:

    rows         the data, rows of the stage's kind in any installed format; those of "conversation" are the kit's
    falls        whether the loss of the last step must be below that of the first
    """

    slot: ClassVar[str] = "stage"
    kinds: ClassVar[Sequence[str]] = ("llama", "gpt2", "mixtral")
    rows: ClassVar[Rows] = ()
    falls: ClassVar[bool] = True

    # ---- the model that the stage trains

    @property
    def task(self) -> Task:
        stage = self.description
        assert isinstance(stage, TrainingStage)
        return stage.task

    def profile(self, case: Case) -> ArchitectureProfile:
        return profile_for(super().profile(case), self.task)

    def situation(self, case: Case) -> Situation:
        return dataclasses.replace(super().situation(case), task=self.task)

    # ---- what is looked at

    def data(self) -> Rows:
        """The rows to learn from."""
        if self.rows:
            return self.rows
        stage = self.description
        assert isinstance(stage, TrainingStage)
        assert stage.data_kind == "conversation", f"set `rows` to a dozen rows of {stage.data_kind} data"
        return [
            {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word} {word}"}]}
            for word in WORDS
        ]

    def run(
        self,
        case: Case,
        folder: Path,
        *,
        output: str = "run",
        packing: bool = False,
        train: Mapping[str, Any] = FrozenDict(),
        resume: bool = False,
        observers: tuple[Callable[[RunEvent], None], ...] = (),
        stop: threading.Event | None = None,
    ) -> Ran:
        """A whole run into `folder`/`output`, `train` over the section's own; what it raises comes through."""
        ran = Ran()
        adapter = last_layer(ran)
        stage = self.description
        assert isinstance(stage, TrainingStage)

        def listen(runtime: Any, config: Any) -> Mapping[str, float]:
            ran.metrics = stage.run(runtime, config)
            return ran.metrics

        catalog = with_methods(self.catalog(), dataclasses.replace(stage, run=listen), adapter, ADAMW)
        environment = self.environment()
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(dict(row)) + "\n" for row in self.data()), encoding="utf-8")
        config = {
            "model": str(case.tiny.folder),
            "data": {"train": [str(rows)], "max_length": 128, "packing": packing},
            "stage": {"use": stage.name, **thaw(case.options)},
            "adapter": adapter.name,
            "optimizer": {"use": ADAMW.name, "lr": 0.02, "schedule": "constant", "warmup": 0},
            "patches": [],
            "precision": "fp32",
            "train": {"batch_tokens": 256, "max_steps": STEPS, "epochs": STEPS, "seed": 1, **train},
            "output": str(folder / output),
        }
        plan = (self.surroundings or installed()).plan(config, catalog, environment)
        ran.results = execute(plan, catalog, environment=environment, observers=observers, resume=resume, stop=stop)
        return ran

    # ---- what it promises

    def test_it_trains(self, case: Case, tmp_path: Path) -> None:
        """A finite loss that falls, metrics that are numbers, and no parameter moved but those that train."""
        events: list[RunEvent] = []
        ran = self.run(case, tmp_path, observers=(events.append,))
        losses = [float(event.values["loss"]) for event in events if event.kind == "step"]
        assert len(losses) == STEPS, f"{len(losses)} steps were reported, {STEPS} were asked for"
        assert all(map(math.isfinite, losses)), f"a loss is no number: {losses}"
        assert not self.falls or losses[-1] < losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"
        wrong = {name: value for name, value in ran.metrics.items() if not _is_number(value)}
        assert not wrong, f"metrics that are no finite numbers: {wrong}"
        json.dumps(ran.results, allow_nan=False)
        touched = measuring.changed(ran.model, ran.rest)
        assert not touched, f"{len(touched)} tensors that do not train were changed, first {touched[0]}"
        still = set(ran.moving) - set(measuring.changed(ran.model, ran.moving))
        assert not still, f"{len(still)} parameters that train were not moved, first {sorted(still)[0]}"

    def test_packed_rows_are_learned_as_padded_ones(self, case: Case, tmp_path: Path) -> None:
        """Where "stage.packs" is declared: a step over all rows has the same loss, packed into one sequence and padded."""
        profile = self.profile(case)
        if PACKS not in self.pick(case).declaration.provides or RECURRENT in profile.traits or why_documents_mix(profile):
            return
        losses = {}
        for packing in (True, False):
            events: list[RunEvent] = []
            ran = self.run(
                case,
                tmp_path,
                output=f"packed-{packing}",
                packing=packing,
                train={"batch_tokens": ALL_ROWS, "max_steps": 1},
                observers=(events.append,),
            )
            (losses[packing],) = [float(event.values["loss"]) for event in events if event.kind == "step"]
            assert ran.metrics, "the stage returned no metrics"
        packed, padded = losses[True], losses[False]
        assert math.isclose(packed, padded, rel_tol=1e-4), (
            f"the loss of all rows is {packed:.6f} packed, {padded:.6f} padded"
        )

    def test_it_stops_and_resumes_bit_for_bit(self, case: Case, tmp_path: Path) -> None:
        """Ctrl-C saves a checkpoint of the step that it came in, or of the one before where that is given up; resumed, the
        run ends as if nothing had happened."""
        straight = self.run(case, tmp_path, output="straight")
        stop = threading.Event()

        def interrupt(event: RunEvent) -> None:
            if event.kind == "step" and event.values["step"] == STOPPED - 1:
                stop.set()

        with pytest.raises(Interrupted):
            self.run(case, tmp_path, observers=(interrupt,), stop=stop)
        found = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
        allowed = [[f"checkpoint-{step}"] for step in (STOPPED - 1, STOPPED)]
        assert found in allowed, f"stopped at step {STOPPED}, the checkpoints are {found or 'none'}"
        resumed = self.run(case, tmp_path, resume=True)
        expected = measuring.state(straight.model)
        other = measuring.changed(resumed.model, expected)
        assert not other, f"resumed, {len(other)} tensors are not what they are without a stop, first {other[0]}"


def last_layer(ran: Ran) -> Adapter[NoOptions]:
    """An adapter that trains the last decoder layer and a score head, and notes the model in `ran`."""

    def attach(model: nn.Module, profile: ArchitectureProfile, config: NoOptions) -> nn.Module:
        trained = tuple(f"{name}." for name in (f"{profile.decoder}.{profile.layers - 1}", *score_modules(profile)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        ran.model = model
        ran.rest, ran.moving = measuring.state(model, trained=False), measuring.state(model, trained=True)
        return model

    return Adapter(
        name="last-layer",
        summary="The last decoder layer trains.",
        provides=frozenset({"base.partly_frozen", "params.full_rank"}),
        attach=attach,
        memory=lambda profile, config: MemoryTerms(trainable=profile.parameters // max(profile.layers, 1)),
    )


def _adamw(model: nn.Module, config: OptimizerOptions) -> Any:
    return torch.optim.AdamW(decay_groups(model, 0.0), lr=config.lr), ()


ADAMW: Final = OptimizerMethod[OptimizerOptions](
    name="plain-adamw", summary="torch's AdamW.", config=OptimizerOptions, build=_adamw
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
