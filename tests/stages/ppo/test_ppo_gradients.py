"""One base for policy and values gives the gradients of two separate models, whichever layers recompute activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from luthier.core.references import active_adapters

CHECKPOINTED = ("kept", "recomputed", "some recomputed")


def recompute(model: Any, how: str) -> None:
    """As the patch `checkpointing` marks layers; the model trains, or they would not."""
    from luthier.plugins.checkpointing import CheckpointingConfig
    from luthier.plugins.checkpointing.marking import mark_layers

    model.train()
    if how != "kept":
        profile: Any = type("Profile", (), {"decoder": "model.layers", "architecture": "LlamaForCausalLM"})
        mark_layers(model, profile, CheckpointingConfig(every=1 if how == "recomputed" else 2))


def policy_loss(model: Any, made: Any) -> torch.Tensor:
    """The clipped surrogate of all answer tokens, written out for one row after the other on whole logits."""
    total = torch.zeros(())
    for row, (prompt, answer) in enumerate(zip(made.rollout.prompts, made.rollout.answers, strict=True)):
        logits = model(input_ids=torch.tensor([[*prompt, *answer.ids]]), use_cache=False).logits[0]
        for at, token in enumerate(answer.ids):
            logprob = torch.log_softmax(logits[len(prompt) + at - 1], dim=0)[token]
            ratio = torch.exp(logprob - made.rollout.logprobs[row, at])
            advantage = made.advantages[row, at]
            total = total + torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
    return total / int(made.rollout.mask.sum())


def value_loss(model: Any, head: Any, made: Any) -> torch.Tensor:
    total = torch.zeros(())
    for row, (prompt, answer) in enumerate(zip(made.rollout.prompts, made.rollout.answers, strict=True)):
        decoder = model.get_base_model().model
        hidden = decoder(input_ids=torch.tensor([[*prompt, *answer.ids]]), use_cache=False).last_hidden_state[0]
        for at in range(len(answer.ids)):
            value = hidden[len(prompt) + at - 1] @ head.weight + head.bias[0]
            old, target = made.rollout.values[row, at], made.returns[row, at]
            held = old + (value - old).clamp(-0.2, 0.2)
            total = total + 0.5 * torch.maximum((value - target) ** 2, (held - target) ** 2)
    return 0.1 * total / int(made.rollout.mask.sum())


def gradients(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name.replace(f".{adapter}.", "."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and parameter.grad is not None
    }


def accumulated(made: Any) -> None:
    """The gradients of one mini-batch, left where they are."""
    from luthier.plugins.ppo.forward import without_dropout
    from luthier.plugins.ppo.updates import Sums

    learner, tokens = made.learner(), int(made.rollout.mask.sum())
    with without_dropout(made.roles.model):
        for places in made.rollout.minibatches[0]:
            learner._backward(made.rollout, places, made.advantages, made.returns, tokens, Sums(), 1)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 1e-3 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def roles_of(model: Any, *, value_adapter: bool) -> Any:
    from luthier.plugins.ppo.roles import Roles

    torch.manual_seed(3)
    roles = Roles(model, reference="disabled", value_adapter=value_adapter, hidden_size=64)
    torch.nn.init.normal_(roles.head.weight, std=0.3)
    torch.nn.init.normal_(roles.head.bias)
    return roles


@pytest.mark.parametrize("how", CHECKPOINTED)
def test_with_an_adapter_of_their_own_the_two_do_not_meet(how: str, model: Any, made: Any, filled: Any) -> None:
    one = model(adapter={})
    roles = roles_of(one, value_adapter=True)
    filled(one, 1, only=".critic.")
    policy, values = copy.deepcopy(one), copy.deepcopy(one)
    head = copy.deepcopy(roles.head)
    recompute(one, how)
    parts = made(roles)
    assert sum(len(places) > 1 for places in parts.rollout.minibatches[0]) >= 1
    accumulated(parts)

    policy_loss(policy.eval(), parts).backward()
    with active_adapters(values.eval(), default="critic"):
        value_loss(values, head, parts).backward()
    close(gradients(one, "default"), gradients(policy, "default"))
    close(gradients(one, "critic"), gradients(values, "critic"))
    assert not gradients(policy, "critic")
    assert not gradients(values, "default")
    torch.testing.assert_close(roles.head.weight.grad, head.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(roles.head.bias.grad, head.bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", CHECKPOINTED)
def test_without_one_the_policy_learns_from_both_losses(how: str, model: Any, made: Any) -> None:
    one = model(adapter={})
    roles = roles_of(one, value_adapter=False)
    policy, values = copy.deepcopy(one), copy.deepcopy(one)
    head = copy.deepcopy(roles.head)
    recompute(one, how)
    parts = made(roles)
    accumulated(parts)
    policy_loss(policy.eval(), parts).backward()
    value_loss(values.eval(), head, parts).backward()
    first, second = gradients(policy, "default"), gradients(values, "default")
    # Nothing of the last layers' output projection alone: hidden states are below both losses.
    close(gradients(one, "default"), {name: first[name] + second[name] for name in first})
    torch.testing.assert_close(roles.head.weight.grad, head.weight.grad, rtol=1e-4, atol=1e-6)


def test_the_split_into_micro_batches_changes_no_gradient(model: Any, made: Any) -> None:
    found = []
    for batch_tokens in (20, 60, 10_000):
        one = model(adapter={})
        accumulated(made(roles_of(one, value_adapter=True), batch_tokens=batch_tokens))
        found.append(gradients(one, "default") | gradients(one, "critic"))
    for other in found[1:]:
        close(found[0], other)


def test_a_switch_before_the_backward_pass_is_what_this_guards_against(model: Any, filled: Any) -> None:
    """Recomputed layers take the adapter that is active then: the reason why every backward pass is inside its block."""
    one = model(adapter={})
    roles_of(one, value_adapter=True)
    filled(one, 1, only=".critic.")
    right = copy.deepcopy(one)
    recompute(one, "recomputed")
    ids = torch.arange(3, 13)[None]
    right(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    loss = one(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
    with active_adapters(one, default="critic"):
        loss.backward()
    name = next(name for name in gradients(right, "default") if "lora_B" in name)
    assert not torch.allclose(gradients(one, "default")[name], gradients(right, "default")[name], rtol=0.01)


def test_entropy_has_its_gradient(model: Any, made: Any) -> None:
    one, other = model(adapter={}), model(adapter={})
    parts = made(roles_of(one, value_adapter=True), entropy_coef=0.5)
    accumulated(parts)
    loss = policy_loss(other.eval(), parts)
    for prompt, answer in zip(parts.rollout.prompts, parts.rollout.answers, strict=True):
        logits = other(input_ids=torch.tensor([[*prompt, *answer.ids]]), use_cache=False).logits[0]
        log_p = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        loss = loss + 0.5 * (log_p.exp() * log_p).sum() / int(parts.rollout.mask.sum())
    loss.backward()
    close(gradients(one, "default"), gradients(other, "default"))
