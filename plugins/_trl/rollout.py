"""TRL's trainers of answers that are generated while training: `class GrpoTrainer(RolloutMixin, trl.GRPOTrainer)`.

    prompts -> several answers to each (core/generation.py) -> rewards (core/rewards) -> TRL's advantages and TRL's loss,
    from log-probabilities of our own (answer_log_probs.py), with the reference of the plan (core/references.py)

What TRL does besides is left out: its constructors change the model that they are given, so they get a stand-in; its copies
of adapters, its reference model, its reports and files are replaced by the core's.

A rollout that fails, because a reward does or because the user stops the run, leaves the weights as they were after the last
step: they are saved with the random numbers from before the rollout, so that a resumed run makes the same answers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from transformers import Trainer

from luthier.core.checkpoint import capture_rng, read_packed, restore_rng, write_packed
from luthier.core.errors import Interrupted
from luthier.core.generation import Answer, Sampling, end_tokens, evaluating, generate
from luthier.core.output import checkpoint_step
from luthier.core.rewards import RewardError, Rewards, Scored, scored
from luthier.core.trainer import RunTrainerMixin
from luthier.plugins._trl.answer_log_probs import answer_log_probs
from luthier.plugins._trl.trainer import placeholder, stand_in

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from luthier.core.data import Examples
    from luthier.core.references import ReferencePolicy
    from luthier.core.runtime import Runtime
    from luthier.plugins._trl.rollout_schedule import RolloutSchedule

# TRL's names of what it measures, and ours.
REPORTED: Final[dict[str, str]] = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "same_rewards",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "finished": "finished",
    "answer_tokens": "answer_tokens",
}
ROLLOUT: Final = "rollout"
FEW: Final = 0.5


class Prompts:
    """Numbers of the rows, as TRL takes data: the tokens stay where they are."""

    def __init__(self, rows: Examples) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"prompt": index}

    @property
    def digest(self) -> str:
        return self.rows.digest


class RolloutMixin(RunTrainerMixin):
    """Before `trl.GRPOTrainer` or `trl.RLOOTrainer`.

    rows, held_out   prompts to train on and to evaluate on
    rewards          what judges the answers
    sampling         how they are generated
    beta, reference  weight of the KL term, and what it compares with; None where beta is 0
    """

    callback_handler: Any
    accelerator: Any
    _metrics: Any
    _buffered_inputs: Any
    schedule: RolloutSchedule  # type: ignore[assignment]

    def __init__(
        self,
        *,
        runtime: Runtime,
        schedule: RolloutSchedule,
        args: TrainingArguments,
        rows: Examples,
        held_out: Examples | None,
        rewards: Rewards,
        sampling: Sampling,
        beta: float,
        reference: ReferencePolicy | None,
    ) -> None:
        assert runtime.model is not None
        assert runtime.tokenizer is not None
        self.rows, self.held_out, self.rewards, self.sampling = rows, held_out, rewards, sampling
        self._before_rollout: Any = None
        self._told_unfinished = self._cut_short = False
        self._reward_before: float | None = None
        super().__init__(
            model=stand_in(runtime.model),
            args=args,
            reward_funcs=[_named(term.name) for term in rewards.terms],
            processing_class=copy.deepcopy(runtime.tokenizer),
            train_dataset=placeholder(),
            runtime=runtime,
            schedule=schedule,  # type: ignore[arg-type]
        )
        self.model = self.model_wrapped = self.callback_handler.model = runtime.model
        # With a tokenizer, Trainer would change the model's special tokens when training begins.
        self.processing_class = self.callback_handler.processing_class = None
        self.train_dataset = Prompts(rows)
        self.eval_dataset = Prompts(held_out) if held_out is not None else None
        # Given to the constructor, these would have it copy the adapter or load the model once more.
        self.beta, self.ref_model = beta, reference
        self.reward_weights = torch.tensor([term.weight for term in rewards.terms], dtype=torch.float32)
        self.eos_token_ids = list(end_tokens(runtime.model, runtime.tokenizer))
        self._step = 0
        self._buffered_inputs = None

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    # ---- the run

    def fit(self) -> dict[str, float]:
        """As in every stage. Where a reward fails, or the run is stopped in a rollout, a checkpoint is saved before it is
        raised: RewardError or Interrupted."""
        try:
            if self.held_out is not None and self.runtime.resume_from is None:
                self._reward_before = self.evaluate()["eval_reward"]
            metrics = super().fit()
        except RewardError as error:
            raise RewardError(
                error.term, f"{error.message}; {self._save_last_step()}", rows=error.rows, fix=error.fix
            ) from error
        except Interrupted as stopped:
            if not self._cut_short:
                raise  # after a step, which is saved
            raise Interrupted(
                f"stopped while answers were generated; {self._save_last_step()}",
                fix="give the same command with --resume to continue"
                if self.state.global_step
                else "give the same command again",
            ) from stopped
        return metrics | ({} if self._reward_before is None else {"eval_reward_before": self._reward_before})

    def _save_last_step(self) -> str:
        """Save what the last whole step left, unless it is saved; returns where, for a message."""
        step, steps = self.state.global_step, self.state.max_steps
        if not step:
            return "nothing had trained yet"
        unread = self.watch.unread()
        if unread is not None:
            self.log({"loss": unread, "learning_rate": self._get_learning_rate()})  # type: ignore[attr-defined]
        if self._before_rollout is not None:
            restore_rng(self._before_rollout)
        self.model.zero_grad(set_to_none=True)
        folder = self.runtime.output.path / f"checkpoint-{step}"
        if not folder.is_dir():
            self._save_checkpoint(self.model)
        return f"step {step} of {steps} is saved in {folder}"

    def save_more(self, folder: Path) -> None:
        """The first held-out reward; answers that further steps will learn from, where a rollout has not ended here."""
        window = self.schedule.steps_per_rollout * self.schedule.accumulation
        answers = self._buffered_inputs if self._step % window else None
        write_packed(folder, ROLLOUT, {"reward_before": self._reward_before, "answers": answers})

    def load_more(self, folder: Path) -> None:
        self._step = checkpoint_step(folder) * self.schedule.accumulation
        kept = read_packed(folder, ROLLOUT)
        self._reward_before = kept["reward_before"]
        if kept["answers"] is not None:
            device = self.args.device
            self._buffered_inputs = [
                {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
                for batch in kept["answers"]
            ]

    # ---- a rollout

    def _prepare_inputs(self, batch: Any) -> dict[str, Tensor]:
        """A micro-batch's part of the rollout, which the first one makes."""
        inputs: dict[str, Tensor] = super()._prepare_inputs(batch)  # type: ignore[misc]
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        self.watch.count([{"attention_mask": mask}], trained=inputs["completion_mask"].sum())
        return inputs

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        self._before_rollout = capture_rng()
        # TRL switches checkpointing off and on again around this, and does not know which layers a patch chose.
        self.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
        try:
            made: dict[str, Tensor] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self.model = self.runtime.model
        self._before_rollout = None
        return made

    def answers(self, prompts: Sequence[int]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """Tokens of the prompts, tokens and texts of the answers to them."""
        made, tokenizer = self._generated(self.rows, prompts), self.runtime.tokenizer
        self._made = [scored(self.rows, row, answer, tokenizer) for row, answer in zip(prompts, made, strict=True)]
        finished = sum(answer.finished for answer in made) / len(made)
        self._metrics["train"]["finished"].append(finished)
        self._metrics["train"]["answer_tokens"].append(sum(len(answer.ids) for answer in made) / len(made))
        if finished < FEW and not self._told_unfinished:
            self._told_unfinished = True
            self.runtime.emit(
                "warning",
                f"{1 - finished:.0%} of {len(made)} answers did not end within max_new_tokens "
                f"({self.sampling.max_new_tokens}) and were cut: raise it, or reward answers that end (the metric "
                "`finished` tells how many do)",
            )
        prompt_ids = [list(answer.prompt_ids) for answer in self._made]
        return prompt_ids, [list(answer.ids) for answer in self._made], [answer.text for answer in self._made]

    def _generated(self, rows: Examples, prompts: Sequence[int]) -> list[Answer]:
        assert self.runtime.tokenizer is not None
        try:
            with self.accelerator.autocast():
                return generate(
                    self.runtime.model,
                    self.runtime.tokenizer,
                    [rows[row]["input_ids"].tolist() for row in prompts],
                    self.sampling,
                    batch_tokens=self.runtime.config.train.batch_tokens,
                    stop=self.runtime.stop,
                )
        except Interrupted:
            self._cut_short = True
            raise

    def _calculate_rewards(self, *_: Any) -> Tensor:
        """Of the answers just made, float32 (answers, terms), without their weights."""
        terms = self.rewards.score(self._made).terms
        return torch.tensor(list(terms.values()), dtype=torch.float32, device=self.args.device).T.contiguous()

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Of the policy as it trains; without gradients, of policy or reference as they answer, without dropout."""
        options: dict[str, Any] = {
            "temperature": self.sampling.temperature,
            "batch_size": batch_size,
            "entropy": compute_entropy,
        }
        inputs, policy = (input_ids, attention_mask, logits_to_keep), self.runtime.model
        with self.accelerator.autocast():
            if torch.is_grad_enabled():
                return *answer_log_probs(policy, *inputs, **options), None
            with evaluating(policy):
                if model is not self.ref_model or self.ref_model is None:
                    return *answer_log_probs(policy, *inputs, **options), None
                with self.ref_model() as frozen:
                    return *answer_log_probs(frozen, *inputs, **options), None

    # ---- what is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's report, with the means of what TRL measured since the last one, under our names."""
        kept: Mapping[str, Sequence[float]] = self._metrics["train"]
        names = REPORTED | {
            f"rewards/{term.name}/{which}": f"reward_{term.name}{suffix}"
            for term in self.rewards.terms
            for which, suffix in (("mean", ""), ("std", "_std"))
        }
        logs.update({ours: sum(kept[theirs]) / len(kept[theirs]) for theirs, ours in names.items() if kept.get(theirs)})
        self._metrics["train"].clear()
        Trainer.log(self, logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean reward of one answer to each held-out prompt, drawn with the same random numbers every time."""
        assert self.held_out is not None
        before = capture_rng()
        torch.manual_seed(self.args.seed)
        try:
            made = self._generated(self.held_out, range(len(self.held_out)))
        finally:
            restore_rng(before)
        answers = [scored(self.held_out, row, answer, self.runtime.tokenizer) for row, answer in enumerate(made)]
        metrics = self._judged(answers)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _judged(self, answers: Sequence[Scored]) -> dict[str, float]:
        batch, count = self.rewards.score(answers), len(answers)
        return {
            "eval_reward": sum(batch.total) / count,
            **{f"eval_reward_{name}": sum(values) / count for name, values in batch.terms.items()},
            "eval_finished": sum(answer.finished for answer in answers) / count,
            "eval_answer_tokens": sum(len(answer.ids) for answer in answers) / count,
            "eval_rows": count,
        }


def _named(name: str) -> Any:
    """TRL wants a function of each term, and names its metrics after it; ours are called in `_calculate_rewards`."""

    def reward(**_: Any) -> list[float]:
        raise RuntimeError("rewards are computed for all terms at once")

    reward.__name__ = name
    return reward
