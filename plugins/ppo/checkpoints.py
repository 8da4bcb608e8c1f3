"""What a checkpoint of `ppo` holds besides the policy, and how a run goes on from it as if it had never stopped.

    as every stage's       the adapter or the model, tokenizer, optimizer, schedule, random generators, totals
    ppo.json/.safetensors  value head, value adapter, KL coefficient, reward before training, what was counted

The order of the prompts follows from the seed, so that the number of the step is their place in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from luthier.core.checkpoint import capture_rng, load_state, read_packed, restore_rng, save_state, write_packed
from luthier.core.errors import OutputError
from luthier.core.output import CHECKPOINT_STATE, checkpoint_step
from luthier.core.progress import StepWatch
from luthier.core.saving import load_trained

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.ppo.roles import Roles
    from luthier.plugins.ppo.updates import Learner

OWN: Final = "ppo"


@dataclass
class Progress:
    """How far a run is. `rng` are the generators as they were after `step` updates, `kl_coef` what the next one uses.

    before        means over the answers to held-out prompts before training; None where there are none, or not yet
    first, last   means of the first and of the last update
    endless       updates in which no answer ended by itself
    """

    kl_coef: float
    step: int = 0
    before: dict[str, float] | None = None
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    endless: int = 0
    rng: Any = None

    def kept(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("step", "rng")}


class Checkpoints:
    """Saves and resumes. `fingerprint` tells the prompts and their order apart from others."""

    def __init__(self, runtime: Runtime, roles: Roles, learner: Learner, watch: StepWatch, fingerprint: str) -> None:
        self._runtime, self._roles, self._learner = runtime, roles, learner
        self._watch, self._fingerprint = watch, fingerprint

    def save(self, progress: Progress) -> Path:
        """checkpoint-N, whole or not at all; older ones are pruned."""
        runtime, name = self._runtime, f"checkpoint-{progress.step}"
        with runtime.output.atomic_folder(name) as folder:
            runtime.save_model(folder)
            if runtime.tokenizer is not None:
                runtime.tokenizer.save_pretrained(str(folder))
            write_packed(folder, OWN, {"parameters": self._roles.own_state(), "progress": progress.kept()})
            save_state(
                folder,
                optimizer=self._learner.optimizer,
                scheduler=self._learner.schedule,
                rng=progress.rng,
                progress={
                    "step": progress.step,
                    "optimizer_steps": self._learner.done,
                    "schedule": self._fingerprint,
                    "totals": self._watch.state(),
                },
            )
            # The mark of a complete checkpoint.
            (folder / CHECKPOINT_STATE).write_text(json.dumps({"global_step": progress.step}) + "\n", encoding="utf-8")
        runtime.output.prune(runtime.config.train.keep_checkpoints)
        path = runtime.output.path / name
        runtime.emit("checkpoint", step=progress.step, folder=str(path))
        return path

    def resume(self, folder: Path) -> Progress:
        """Everything as it was, the generators included. Raises OutputError for a checkpoint of other prompts."""
        runtime = self._runtime
        saved = read_packed(folder, "progress")
        if saved["schedule"] != self._fingerprint:
            raise OutputError(
                "this checkpoint is of other prompts or another order of them, so the run cannot go on where it stopped",
                where=str(folder),
                fix="resume with the data, seed and options of the first run (its config.yaml), or start anew with "
                "--overwrite",
            )
        runtime.output.rewind_metrics(checkpoint_step(folder))
        adapter: Any = runtime.method(runtime.plan.step("adapter"))[0]
        assert runtime.model is not None
        runtime.model = load_trained(runtime.model, folder, adapter, trainable=True)
        own = read_packed(folder, OWN)
        self._roles.load_own_state(own["parameters"])
        load_state(folder, optimizer=self._learner.optimizer, scheduler=self._learner.schedule)
        self._learner.done = saved["optimizer_steps"]
        self._watch.restore(saved["totals"])
        states = read_packed(folder, "rng")
        restore_rng(states)
        if states["cuda"] and not torch.cuda.is_available():
            runtime.emit("warning", "the checkpoint is of a CUDA run: its random numbers cannot be continued on this device")
        return Progress(step=saved["step"], rng=capture_rng(), **own["progress"])
