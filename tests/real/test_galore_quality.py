"""`galore` against full AdamW on the real model: the best of the same three rates for each, on rows that were held out.

With `scale: 2`: a quarter, the default, is the paper's for pre-training at a rate of 0.01; for fine-tuning its authors take
4 at AdamW's rates (README of github.com/jiaweizzhao/GaLore). Needs PyPI the first time (93 MB, then cached); part of
`make test-all`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import luthier

RATES = (1e-4, 3e-4, 6e-4)
OPTIMIZERS = {"adamw": {}, "galore": {"scale": 2.0}}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_loss_is_at_most_two_percent_above_adamw(tmp_path: Path) -> None:
    from luthier.demo.task import write_task

    train, _ = write_task(tmp_path)
    best = {}
    for use, options in OPTIMIZERS.items():
        losses = []
        for rate in RATES:
            config = {
                "model": "smollm2-135m",
                "data": {"train": [{"path": str(train), "rows": 260}], "eval": 40, "max_length": 128},
                "adapter": "full",
                "optimizer": {"use": use, "lr": rate, **options},
                "train": {"batch_tokens": 256, "max_steps": 20},
                "output": str(tmp_path / f"{use}-{rate}"),
            }
            losses.append(luthier.train(config)["eval_loss"])
            print(use, rate, losses[-1])
        best[use] = min(losses)
    assert best["adamw"] < 1.0  # something was learned
    assert best["galore"] <= 1.02 * best["adamw"]
