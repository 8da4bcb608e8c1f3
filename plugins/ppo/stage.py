"""PPO, from top to bottom.

    prompts -> answers        sampled from the policy, `batch` of them                              (rollout.py)
            -> scores         the terms of `reward`, less the penalty for an answer without an end  (core/rewards)
            -> rewards        the score at the last token, less the KL to the reference at each     (mathematics.py)
            -> advantages     generalised advantage estimates, from the value head                  (mathematics.py)
            -> updates        `ppo_epochs` over `mini_batches`, clipped losses                      (updates.py)

That is one step of the run. Policy, reference, values and a reward run of the same base are one model in memory, with other
adapters active (roles.py). Held-out prompts are answered and scored before the first step, every `train.eval_every` steps
and at the end. A reward that fails stops the run with a checkpoint from before the step that it failed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.checkpoint import capture_rng, restore_rng
from luthier.core.errors import Interrupted, LuthierError, OutOfMemoryError
from luthier.core.generation import Answer, Sampling
from luthier.core.meter import ran_out_of_memory
from luthier.core.progress import StepWatch
from luthier.core.rewards import RewardError, Rewards, Scored, scored
from luthier.plugins.ppo.checkpoints import Checkpoints, Progress
from luthier.plugins.ppo.journal import Journal, mean, rollout_metrics
from luthier.plugins.ppo.mathematics import (
    advantages_and_returns,
    explained_variance,
    masked_mean,
    next_coefficient,
    token_rewards,
    whiten,
)
from luthier.plugins.ppo.prompts import Prompts, check_lengths, ids_of
from luthier.plugins.ppo.roles import Roles
from luthier.plugins.ppo.rollout import Measure, collect
from luthier.plugins.ppo.sharing import open_rewards_on
from luthier.plugins.ppo.updates import Learner

if TYPE_CHECKING:
    from luthier.core.data import Examples
    from luthier.core.runtime import Runtime
    from luthier.plugins.ppo import PpoConfig


def train(runtime: Runtime, config: PpoConfig) -> dict[str, float]:
    """Run the stage; returns totals, the means of the last update, and the held-out reward before and after.

    Raises Interrupted once a checkpoint is saved after `runtime.stop` was set, RewardError likewise where the reward fails,
    OutOfMemoryError, and LuthierError when a loss is no number any more.
    """
    return Ppo(runtime, config).fit()


class Ppo:
    """One run: its parts, made in the order in which they may be made, and the loop over them."""

    def __init__(self, runtime: Runtime, config: PpoConfig) -> None:
        assert runtime.model is not None
        assert runtime.tokenizer is not None
        assert runtime.data is not None
        plan, train = runtime.plan, runtime.config.train
        self.runtime, self.config = runtime, config
        self.prompts, self.held_out = Prompts(runtime, config), runtime.data.eval
        if len(self.held_out):
            check_lengths(runtime, config, self.held_out)
        how: Any = plan.step("stage").reference
        self.roles = Roles(
            runtime.model, reference=how, value_adapter=config.value_adapter, hidden_size=plan.profile.hidden_size
        )
        self.measure = Measure(
            roles=self.roles,
            tokenizer=runtime.tokenizer,
            sampling=Sampling(
                max_new_tokens=config.max_new_tokens,
                min_new_tokens=config.min_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
            ),
            batch_tokens=train.batch_tokens,
            autocast=self._autocast,
        )
        with torch.random.fork_rng(devices=self._cuda):
            # Whether its model is shared or a second one, what is sampled is the same.
            self.rewards: Rewards = open_rewards_on(self.roles, config.reward, runtime)
        for part in (self.prompts.rows, self.held_out):
            self.rewards.check(part)
        self.learner = Learner(runtime, config, self.measure, updates=self.prompts.updates)
        self.watch = StepWatch()
        self.journal = Journal(runtime, self.prompts, self.watch)
        self.checkpoints = Checkpoints(runtime, self.roles, self.learner, self.watch, self.prompts.fingerprint)
        self.progress = Progress(kl_coef=config.kl.coef)

    @property
    def _cuda(self) -> list[int]:
        """The CUDA devices whose generators this run draws from."""
        return [torch.cuda.current_device()] if self.runtime.plan.device.startswith("cuda") else []

    def _autocast(self) -> Any:
        precision, device = self.runtime.plan.precision, torch.device(self.runtime.plan.device).type
        return torch.autocast(device, dtype=getattr(torch, precision.compute)) if precision.autocast else nullcontext()

    # ---- the run

    def fit(self) -> dict[str, float]:
        self.journal.start(held_out=len(self.held_out))
        dropout = max((one.p for one in self.roles.model.modules() if isinstance(one, torch.nn.Dropout)), default=0.0)
        if dropout:
            self.runtime.notice(f"dropout (up to {dropout:g} in this model) is off: old and new policy would differ by it")
        with self._memory():
            if self.runtime.resume_from is not None:
                self.progress = self.checkpoints.resume(self.runtime.resume_from)
            else:
                self.progress.rng = capture_rng()
            try:
                return self._all_steps()
            except (RewardError, Interrupted) as error:
                # Within a step nothing has trained yet: it is given up, and begins anew when the run is resumed.
                self.journal.report(self.progress.step)
                folder = self.checkpoints.save(self.progress)
                if isinstance(error, RewardError):
                    raise
                raise self._stopped(folder) from None

    def _all_steps(self) -> dict[str, float]:
        progress, train, steps = self.progress, self.runtime.config.train, self.prompts.updates
        if progress.step == 0 and len(self.held_out):
            progress.before = self.evaluate()
        evaluated: dict[str, float] | None = None
        for step in range(progress.step + 1, steps + 1):
            self.watch.begin()
            metrics = self.one_step(step)
            progress.step, progress.last, progress.rng = step, metrics, capture_rng()
            progress.first = progress.first or metrics
            last, stop = step == steps, self.runtime.stop.is_set() and step < steps
            saves, evaluates = stop or _due(step, train.save_every), last or _due(step, train.eval_every)
            # Reported before it is saved: the report is where numbers that are none stop the run.
            self.journal.note(step, metrics, report=saves or evaluates or _due(step, train.log_every))
            if evaluates and len(self.held_out):
                evaluated = self.evaluate()
            if stop:
                raise Interrupted("stopped")
            if saves:
                self.checkpoints.save(progress)
        if len(self.held_out) and evaluated is None:
            evaluated = self.evaluate()  # a run that was resumed after its last step
        return self._results(evaluated)

    def _stopped(self, folder: Path) -> Interrupted:
        return Interrupted(
            f"stopped after step {self.progress.step} of {self.prompts.updates}; everything is saved in {folder}",
            fix="give the same command with --resume to continue",
        )

    # ---- one step

    def one_step(self, step: int) -> dict[str, float]:
        """A rollout and its updates; returns what was measured."""
        config, coefficient, rows = self.config, self.progress.kl_coef, self.prompts.of(step)
        prompts = ids_of(self.prompts.rows, rows)
        rollout = collect(self.measure, rows, prompts, minibatches=config.mini_batches, stop=self.runtime.stop)
        mask = rollout.mask

        judged = self.rewards.score(self._scored(self.prompts.rows, rows, rollout.answers))
        finished = torch.tensor([answer.finished for answer in rollout.answers], device=mask.device)
        totals = torch.tensor(judged.total, dtype=torch.float32, device=mask.device)
        scores = totals - config.missing_eos_penalty * ~finished

        kl = rollout.logprobs - rollout.reference
        rewards = token_rewards(scores, kl, mask, coefficient)
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True)
        advantages, returns = advantages_and_returns(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)

        self.watch.count([{"input_ids": torch.empty(rollout.tokens)}], trained=rollout.answer_tokens)
        rate = float(self.learner.schedule.get_last_lr()[0])
        learned = self.learner.update(rollout, advantages, returns, step=step)

        answer_kl = float(kl.sum(dim=1).mean())
        if config.kl.adaptive:
            self.progress.kl_coef = next_coefficient(coefficient, answer_kl, config.kl.target)
        if not finished.any():
            self._nothing_ended(step)
        return {
            **rollout_metrics(rollout, judged, scores),
            "kl": answer_kl,
            "kl_per_token": float(masked_mean(kl, mask)),
            "kl_coef": coefficient,
            "entropy": float(masked_mean(rollout.entropy, mask)),
            "explained_variance": explained_variance(rollout.values, returns, mask),
            "loss": learned["policy_loss"] + config.value_coef * learned["value_loss"],
            "lr": rate,
            **{name: value for name, value in learned.items() if name != "entropy"},
        }

    def _scored(self, prompts: Examples, rows: Sequence[int], answers: Sequence[Answer]) -> list[Scored]:
        return [scored(prompts, row, answer, self.measure.tokenizer) for row, answer in zip(rows, answers, strict=True)]

    def _nothing_ended(self, step: int) -> None:
        self.progress.endless += 1
        if self.progress.endless == 1:
            self.runtime.emit(
                "warning",
                f"no answer of step {step} ended within max_new_tokens ({self.config.max_new_tokens}): what is judged is "
                "cut off. Raise it, or set missing_eos_penalty so that answers that end are worth more; further steps "
                "like this are counted in the results as `endless_steps`",
            )

    # ---- held-out prompts

    def evaluate(self) -> dict[str, float]:
        """Answer and score the held-out prompts; training draws the numbers that it would have drawn without.

        What is sampled is drawn from torch's generator seeded anew: the same numbers each time.
        """
        rows = list(range(len(self.held_out)))
        prompts = ids_of(self.held_out, rows)
        before = capture_rng()
        torch.manual_seed(self.runtime.config.train.seed)
        try:
            answers = self.measure.answers(prompts)
            judged = self.rewards.score(self._scored(self.held_out, rows, answers))
        finally:
            # Those of Python and NumPy as well: a reward function of the user's may draw from them.
            restore_rng(before)
        found = {
            "reward": mean(judged.total),
            **{f"reward_{name}": mean(values) for name, values in judged.terms.items()},
            "answer_tokens": mean([len(answer.ids) for answer in answers]),
            "finished": mean([answer.finished for answer in answers]),
        }
        self.journal.evaluated(self.progress.step, found)
        return found

    def _results(self, evaluated: dict[str, float] | None) -> dict[str, float]:
        progress = self.progress
        found = self.watch.totals.metrics() | {
            name: progress.last[name]
            for name in ("reward", "score", "kl", "kl_coef", "entropy", "finished", "answer_tokens")
        }
        found |= {"reward_first": progress.first["reward"], "endless_steps": progress.endless}
        if evaluated is not None and progress.before is not None:
            found |= {f"eval_{name}": value for name, value in evaluated.items()}
            found |= {f"eval_{name}_before": value for name, value in progress.before.items()}
        return found

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Within the block, running out of memory is told with what was predicted."""
        try:
            yield
        except LuthierError:
            raise
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            plan, gib = self.runtime.plan, 1024**3
            lines = str(error).splitlines() or [type(error).__name__]
            raise OutOfMemoryError(
                f"out of memory in step {self.progress.step + 1}: {self.runtime.meter.peak / gib:.2f} GiB were in use at "
                f"the most, {plan.memory.peak / gib:.2f} GiB were predicted ({lines[0]})",
                where="train",
                fix=f"lower `train.batch_tokens` (now {self.runtime.config.train.batch_tokens}) or `max_new_tokens`, or "
                "train fewer parameters",
            ) from error


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
