"""What `data.streaming` cannot be combined with in one configuration, besides the methods (demands.py)."""

from __future__ import annotations

from luthier.core.config.schema import DataConfig, RunConfig
from luthier.core.errors import Problem


def streaming_problems(config: RunConfig) -> list[Problem]:
    """Keys that need all rows to be known before training, and ones that only a stream reads."""
    data = config.data
    if not data.streaming:
        if data.window == DataConfig.window:
            return []
        return [
            Problem(
                where="data.window",
                reason="rows are taken in windows only from a stream",
                fix="leave it out, or set data.streaming: true",
            )
        ]
    problems = []
    if config.train.max_steps is None:
        problems.append(
            Problem(
                where="data.streaming",
                reason="it is not known how many rows a stream has, so the run needs train.max_steps to know its end",
                fix="set train.max_steps to the number of optimizer steps",
            )
        )
    if data.eval and not isinstance(data.eval, tuple):
        problems.append(
            Problem(
                where="data.eval",
                reason="no part of a stream can be held out: its rows are not known before they are trained on",
                fix="give evaluation sources of their own: data.eval: [{path: eval.jsonl}]",
            )
        )
    problems += [
        Problem(
            where=f"data.train[{number}].sample",
            reason="a stream cannot be sampled: how many rows it has is not known",
            fix="take the first ones with `rows`, or sample the file beforehand",
        )
        for number, source in enumerate(data.train)
        if source.sample is not None
    ]
    return problems
