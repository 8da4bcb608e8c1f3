"""Training stages that break one promise each: the contract catches every one, and a sound one passes every check."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from luthier.core.contracts import TrainingStage
from luthier.core.testing import TrainingStageContract
from luthier.plugins.sft import SftConfig
from luthier.plugins.sft import stage as sft

Caught = Callable[..., None]
PROMISES = sorted(name for name in vars(TrainingStageContract) if name.startswith("test_"))


def stage(run: Callable[..., Mapping[str, float]]) -> TrainingStage[Any]:
    return TrainingStage(
        name="trial", summary="A trial.", data_kind="conversation", provides=frozenset({"stage.packs"}), run=run
    )


def train(runtime: Any) -> dict[str, float]:
    return sft.train(runtime, SftConfig())


def sound(runtime: Any, config: Any) -> Mapping[str, float]:
    return train(runtime)


def thawing(runtime: Any, config: Any) -> Mapping[str, float]:
    """Trains what the adapter froze."""
    for parameter in runtime.model.parameters():
        parameter.requires_grad_(True)
    return train(runtime)


def writing(runtime: Any, config: Any) -> Mapping[str, float]:
    """Writes into a weight that does not train."""
    metrics = train(runtime)
    with torch.no_grad():
        runtime.model.get_input_embeddings().weight.mul_(1.01)
    return metrics


def idle(runtime: Any, config: Any) -> Mapping[str, float]:
    """Puts every weight back."""
    before = {name: tensor.clone() for name, tensor in runtime.model.state_dict().items()}
    metrics = train(runtime)
    runtime.model.load_state_dict(before)
    return metrics


def unfinished(runtime: Any, config: Any) -> Mapping[str, float]:
    return {**train(runtime), "accuracy": float("nan")}


def unstoppable(runtime: Any, config: Any) -> Mapping[str, float]:
    """Does not listen to Ctrl-C."""
    runtime.stop = threading.Event()
    return train(runtime)


def forgetful(runtime: Any, config: Any) -> Mapping[str, float]:
    """Of a packed batch, learns the first row only."""
    collation: Any = importlib.import_module("luthier.core.data.collate")
    own = collation.collate_packed

    def first_only(examples: Any) -> Any:
        batch = own(examples)
        batch["labels"][:, int(batch["cu_seq_lens_q"][1]) :] = -100
        return batch

    collation.collate_packed = first_only
    try:
        return train(runtime)
    finally:
        collation.collate_packed = own


def starting_over(runtime: Any, config: Any) -> Mapping[str, float]:
    """Resumes with other weights than it stopped with."""
    from luthier.core import trainer

    own = trainer.load_trained
    if runtime.resume_from is not None:
        trainer.load_trained = lambda model, *_, **__: model  # type: ignore[assignment]
    try:
        return train(runtime)
    finally:
        trainer.load_trained = own


BROKEN_STAGES = [
    ("test_it_trains", thawing, "tensors that do not train were changed"),
    ("test_it_trains", writing, "1 tensors that do not train were changed, first model.embed_tokens"),
    ("test_it_trains", idle, "parameters that train were not moved"),
    ("test_it_trains", unfinished, "metrics that are no finite numbers: .*accuracy"),
    ("test_packed_rows_are_learned_as_padded_ones", forgetful, "the loss of all rows is .* packed, .* padded"),
    ("test_it_stops_and_resumes_bit_for_bit", unstoppable, "DID NOT RAISE"),
    ("test_it_stops_and_resumes_bit_for_bit", starting_over, "resumed, .* are not what they are without a stop"),
]


@pytest.mark.parametrize("name", PROMISES)
def test_a_sound_stage_passes(name: str, check: Caught) -> None:
    check(TrainingStageContract, name, stage(sound))


@pytest.mark.parametrize(
    ("name", "broken", "words"), BROKEN_STAGES, ids=[f"{name[5:]}-{index}" for index, (name, *_) in enumerate(BROKEN_STAGES)]
)
def test_a_broken_stage_is_caught(name: str, broken: Any, words: str, caught: Caught) -> None:
    caught(TrainingStageContract, name, stage(broken), words)


def test_every_promise_has_a_stage_that_breaks_it() -> None:
    assert {name for name, *_ in BROKEN_STAGES} == set(PROMISES)
