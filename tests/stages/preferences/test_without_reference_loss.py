"""The losses of `cpo`, `simpo` and `orpo` on fixed rows are those of TRL's own trainers, run plainly on the same ids."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.plugins._trl.experimental import experimental
from tests.stages.preferences.conftest import step_loss
from tests.stages.running import preferences, shake

with experimental():
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

ROWS = 8
# By name: the stage and what is asked of it, and what TRL is asked for.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cpo": ("cpo", {}, {}),
    "hinge": ("cpo", {"loss": "hinge", "beta": 0.5}, {"loss_type": "hinge", "beta": 0.5}),
    "ipo": ("cpo", {"loss": "ipo", "likelihood": 0}, {"loss_type": "ipo", "cpo_alpha": 0.0}),
    "smoothed": ("cpo", {"label_smoothing": 0.2, "likelihood": 0.3}, {"label_smoothing": 0.2, "cpo_alpha": 0.3}),
    "simpo": ("simpo", {}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    "simpo with likelihood": (
        "simpo",
        {"beta": 2.5, "gamma": 1.4, "likelihood": 1, "label_smoothing": 0.1},
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.4, "cpo_alpha": 1.0, "label_smoothing": 0.1},
    ),
    "alpha": (
        "simpo",
        {"alpha": 0.1},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "alpha": 0.1},
    ),
    "orpo": ("orpo", {}, {}),
    "orpo, beta": ("orpo", {"beta": 0.7}, {"beta": 0.7}),
}


def parts(sequence: dict[str, Any]) -> tuple[list[int], list[int]]:
    """A sequence up to the end of its answer, and its labels."""
    end = (sequence["labels"] != -100).nonzero()[0][-1] + 1
    return sequence["input_ids"][:end].tolist(), sequence["labels"][:end].tolist()


def padded(lists: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, lists))
    return torch.tensor([one + [value] * (longest - len(one)) for one in lists])


def plain_batch(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows as TRL's own data collator hands them to these trainers."""
    batch = {}
    for which in ("chosen", "rejected"):
        ids, labels = zip(*(parts(row[which]) for row in rows), strict=True)
        batch[f"{which}_input_ids"] = padded(list(ids), pad)
        batch[f"{which}_labels"] = padded(list(labels), -100)
        batch[f"{which}_attention_mask"] = padded([[1] * len(one) for one in ids], 0)
    return batch


def plain_trainer(stage: str, model: Any, tokenizer: Any, folder: Path, options: dict[str, Any]) -> Any:
    kind, config = (ORPOTrainer, ORPOConfig) if stage == "orpo" else (CPOTrainer, CPOConfig)
    arguments = config(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,
        report_to=[],
        max_length=128,
        **options,
    )
    text = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    return kind(model=model, args=arguments, train_dataset=text, processing_class=copy.deepcopy(tokenizer))


def our_trainer(runtime: Any) -> Any:
    """The trainer that the stage makes, caught where it would train."""
    from luthier.plugins._trl.experimental import WithoutReferenceMixin

    made: list[Any] = []

    def hold(trainer: Any) -> dict[str, float]:
        made.append(trainer)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WithoutReferenceMixin, "fit", hold)
        stage, options = runtime.method(runtime.plan.step("stage"))
        stage.run(runtime, options)
    return made[0]


def ready(bench: Any, stage: str, options: dict[str, Any], **sections: Any) -> tuple[Any, Any]:
    """(the runtime, its trainer), every parameter trained and moved."""
    runtime = bench.attached(adapter="full", stage={"use": stage, **options}, **sections)
    shake(runtime.model)
    return runtime, our_trainer(runtime)


@pytest.mark.parametrize("name", CASES)
def test_it_is_trls(name: str, bench_of: Any, tmp_path: Path) -> None:
    stage, ours, theirs = CASES[name]
    runtime, trainer = ready(bench_of(stage), stage, ours)
    folder = runtime.plan.model.path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(runtime.model.state_dict())
    rows = list(range(ROWS))
    loss = step_loss(trainer, [rows])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = plain_trainer(stage, model, tokenizer, tmp_path / "trl", theirs)
    batch = plain_batch([trainer.train_dataset[row] for row in rows], tokenizer.pad_token_id)
    expected, metrics = plain.get_batch_loss_metrics(plain.model.train(), batch)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    told = trainer.measured("train")
    for ours_name, theirs_name in {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}.items():
        assert told[ours_name] == pytest.approx(metrics[theirs_name], rel=1e-4, abs=1e-6)
    assert ("nll" in told) == trainer.likelihood
    if trainer.likelihood:
        assert told["nll"] == pytest.approx(metrics["nll_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["cpo", "simpo with likelihood", "orpo"])
def test_how_a_step_is_split_does_not_matter(name: str, bench_of: Any) -> None:
    """Rows and tokens weigh the same in one micro-batch, and in three of unequal size."""
    stage, ours, _ = CASES[name]
    _, trainer = ready(bench_of(stage), stage, ours)
    whole = step_loss(trainer, [list(range(ROWS))])
    assert step_loss(trainer, [[0, 1, 2, 3, 4], [5], [6, 7]]) == pytest.approx(whole, rel=1e-6)
    # That it can fail: the mean of the micro-batches' own means is another number.
    means = [step_loss(trainer, [rows]) for rows in ([0, 1, 2, 3, 4], [5], [6, 7])]
    assert abs(sum(means) / 3 - whole) > 1e-3


@pytest.mark.parametrize("stage", ["cpo", "simpo", "orpo"])
def test_held_out_rows_are_measured_as_one_batch(stage: str, bench_of: Any) -> None:
    """Whatever the batches: the loss of all held-out rows together, in evaluation mode."""
    rows = preferences(24)
    options = {} if stage != "simpo" else {"likelihood": 1}
    _, trainer = ready(bench_of(stage), stage, options, rows=rows, data={"eval": 7}, train={"batch_tokens": 128})
    assert len(trainer.eval_schedule) > 1
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 7
    trainer.train_dataset = trainer.eval_dataset
    assert metrics["eval_loss"] == pytest.approx(step_loss(trainer, [list(range(7))]), rel=1e-6)
    assert metrics["eval_nll"] == pytest.approx(trainer.measured("train")["nll"], rel=1e-6)


def test_the_prompt_is_learned_or_not(bench_of: Any) -> None:
    """By definition: the mean over the chosen sequences' tokens, in float64, of prompt and answer, or of the answer."""
    for learn_prompt in (True, False):
        runtime, trainer = ready(bench_of("orpo"), "orpo", {"learn_prompt": learn_prompt})
        step_loss(trainer, [[0, 1, 2]])
        told = trainer.measured("train")["nll"]
        total, count = 0.0, 0
        model = copy.deepcopy(runtime.model).double().eval()
        for row in range(3):
            ids, labels = parts(trainer.train_dataset[row]["chosen"])
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            for place, (token, label) in enumerate(zip(ids[1:], labels[1:], strict=True)):
                if learn_prompt or label != -100:
                    total, count = total - float(scores[place, token]), count + 1
        assert told == pytest.approx(total / count, rel=1e-5)


def test_importing_says_nothing_and_hides_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with experimental():
            warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["something else"]
