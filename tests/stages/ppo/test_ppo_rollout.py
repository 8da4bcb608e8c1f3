"""Rollouts: the first ratio is 1, dropout is off, the cache belongs to generation, short answers cannot end."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from luthier.core.generation import Sampling
from luthier.core.testing.models import tiny_tokenizer
from luthier.plugins.ppo.rollout import Measure, collect, split

PROMPTS = [[3, 4, 5], list(range(40, 60)), [7], list(range(100, 109)), [9, 9], [11, 12, 13, 14]]


def measure_of(model: Any, *, value_adapter: bool = False, batch_tokens: int = 64, **sampling: Any) -> Measure:
    from luthier.plugins.ppo.roles import Roles

    roles = Roles(model, reference="disabled", value_adapter=value_adapter, hidden_size=64)
    torch.nn.init.normal_(roles.head.weight)
    return Measure(
        roles=roles,
        tokenizer=tiny_tokenizer(),
        sampling=Sampling(**{"max_new_tokens": 9, "temperature": 0.9, **sampling}),
        batch_tokens=batch_tokens,
        autocast=nullcontext,
    )


def rollout_of(measure: Measure, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return collect(measure, list(range(len(PROMPTS))), PROMPTS, minibatches=2)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 4}])
def test_before_the_first_update_every_ratio_is_one(model: Any, options: Any, recomputed: bool) -> None:
    """Dropout in the adapter and in attention would make it another number; so would other batches or another padding."""
    from luthier.plugins.ppo.forward import states_at, without_dropout

    one = model(adapter={"lora_dropout": 0.5})
    one.config.attention_dropout = 0.5
    for module in one.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    one.train()
    if recomputed:
        for module in one.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    measure = measure_of(one, **options)
    rollout = rollout_of(measure)
    assert all(module.training for module in one.modules()), "the mode of every module is what it was"
    for places in (places for part in rollout.minibatches for places in part):
        with without_dropout(one):
            batch = measure.batch([rollout.prompts[at] for at in places], [rollout.answers[at] for at in places])
            _, logits = states_at(one, batch.ids, batch.mask, batch.places, logits=True)
            assert logits is not None
            logprobs, _ = measure.statistics(logits, batch)
        ratio = torch.exp(logprobs - rollout.logprobs[places][rollout.mask[places]])
        assert logprobs.requires_grad
        assert (ratio - 1).abs().max() < 1e-6


def test_the_first_step_of_a_run_reports_no_kl(run_of: Any) -> None:
    run_of(
        adapter={"use": "lora", "rank": 4, "dropout": 0.3},
        stage={"ppo_epochs": 1, "mini_batches": 1},
        train={"max_steps": 1},
        patches=["checkpointing"],
    )
    (step,) = run_of.told("step")
    assert abs(step["approximate_kl"]) < 1e-9
    assert step["clip_fraction"] == 0
    assert step["kl"] == pytest.approx(0, abs=1e-4)  # a new adapter is the reference


def test_numbers_are_those_of_each_answer_by_itself(model: Any) -> None:
    """Padding, batches and the head's own places change nothing: one row after the other, with whole logits."""
    one = model(adapter={})
    measure = measure_of(one, value_adapter=True)
    rollout = rollout_of(measure)
    base = model()
    assert len({len(answer.ids) for answer in rollout.answers}) > 1 or len({len(prompt) for prompt in PROMPTS}) > 1
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rollout.answers, strict=True)):
        ids = torch.tensor([[*prompt, *answer.ids]])
        with torch.no_grad():
            logits = one.eval()(input_ids=ids, use_cache=False).logits[0].double() / 0.9
            frozen = base.eval()(input_ids=ids, use_cache=False).logits[0].double() / 0.9
            hidden = one.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state[0]
        for at, token in enumerate(answer.ids):
            place = len(prompt) + at - 1
            assert float(rollout.logprobs[row, at]) == pytest.approx(
                float(torch.log_softmax(logits[place], 0)[token]), abs=1e-4
            )
            assert float(rollout.reference[row, at]) == pytest.approx(
                float(torch.log_softmax(frozen[place], 0)[token]), abs=1e-4
            )
            # The value adapter begins as a copy of the policy's.
            value = float(hidden[place] @ measure.roles.head.weight.detach() + measure.roles.head.bias.detach())
            assert float(rollout.values[row, at]) == pytest.approx(value, abs=1e-3)
        assert (rollout.logprobs[row, len(answer.ids) :] == 0).all()


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mixtral", "qwen3", "phi3"])
def test_other_designs_have_their_own_logits(kind: str, model: Any) -> None:
    """Soft-capped logits, tied heads, absolute positions: what the model does to its head's output counts."""
    one = model(kind)
    from luthier.plugins.ppo.forward import make_batch, states_at

    batch = make_batch(PROMPTS[:3], [[20, 21, 22], [23], [24, 25]], 0, "cpu")
    with torch.no_grad():
        hidden, logits = states_at(one, batch.ids, batch.mask, batch.places, logits=True)
        whole = one(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        values, nothing = states_at(one, batch.ids, batch.mask, batch.places, logits=False)
    assert logits is not None
    assert nothing is None
    torch.testing.assert_close(logits, whole[batch.places], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, hidden, rtol=0, atol=0)
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 25]


def test_a_shortest_answer_is_kept_and_its_end_has_no_probability_before(model: Any) -> None:
    one = model(adapter={})
    ends = 257
    head = one.get_base_model().lm_head
    with torch.no_grad():
        head.weight[ends] += 2 * head.weight.norm(dim=1).mean()
    measure = measure_of(one, min_new_tokens=5, max_new_tokens=6)
    rollout = rollout_of(measure)
    assert all(len(answer.ids) >= 5 for answer in rollout.answers)
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(zip(PROMPTS, rollout.answers, strict=True)):
            logits = one.eval()(input_ids=torch.tensor([[*prompt, *answer.ids]]), use_cache=False).logits[0].double() / 0.9
            for at, token in enumerate(answer.ids):
                scores = logits[len(prompt) + at - 1].clone()
                if at < 5:
                    scores[tiny_tokenizer().eos_token_id] = -torch.inf
                expected = float(torch.log_softmax(scores, 0)[token])
                assert float(rollout.logprobs[row, at]) == pytest.approx(expected, abs=1e-4)


def test_the_cache_is_generations_own(run_of: Any) -> None:
    """No update uses it, generation does, and what is saved says what the model came with."""
    import transformers

    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    forward = transformers.LlamaForCausalLM.forward

    @wraps(forward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        seen[torch.is_grad_enabled()].add(out.past_key_values is not None)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "forward", watched)
        results = run_of(adapter="full", train={"max_steps": 1, "save_every": 1}, patches=["checkpointing"])
    assert seen == {True: {False}, False: {True, False}}
    for place in (Path(results["output"]), Path(results["output"]) / "checkpoint-1"):
        saved = json.loads((place / "config.json").read_text())
        assert saved.get("use_cache", True) is True


def test_answers_with_the_cache_are_those_without(model: Any) -> None:
    """Greedy, so that it can be said beforehand: the likeliest token of whole forward passes, one after another."""
    one = model(adapter={"lora_dropout": 0.5}).train()
    for module in one.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    measure = measure_of(one, value_adapter=True, temperature=0.0, batch_tokens=256)
    answers = measure.answers(PROMPTS)
    assert all(module.training for module in one.modules())
    one.eval()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            with torch.no_grad():
                assert int(one(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == token
            ids.append(token)


def test_the_partition_is_whole_and_fits() -> None:
    torch.manual_seed(0)
    lengths = [5, 9, 30, 2, 7, 7, 100, 3, 12, 8, 1]
    parts = split(lengths, 3, 40)
    rows = [row for part in parts for micro in part for row in micro]
    assert sorted(rows) == list(range(len(lengths)))
    assert sorted(len([row for micro in part for row in micro]) for part in parts) == [3, 4, 4]
    for part in parts:
        for micro in part:
            assert len(micro) * max(lengths[row] for row in micro) <= 40 or len(micro) == 1
