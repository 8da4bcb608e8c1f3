"""A reward run of the policy's own base model: its adapter and its score head on the one model that is there already.

    share: auto     shared where both runs' adapters sit on the same weights; else a second model, and a notice says why
    share: true     shared, or an error
    share: false    a second model

The file of a reward run says everything that it adds to its base: where it stands on other adapters, these are in it. So its
adapter is the only one that is active when it scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from luthier.core.generation import evaluating
from luthier.core.references import active_adapters, adapter_layers
from luthier.core.rewards import OpenTerm, RewardError, Rewards, open_rewards, parse_rewards
from luthier.core.rewards.config import RunTerm
from luthier.core.rewards.runs import RewardModel, reward_plan
from luthier.core.saving import ADAPTER_WEIGHTS, quiet, read_weights, require_keys
from luthier.core.scoring import SCORE
from luthier.core.trained import run_tokenizer
from luthier.plugins.ppo import why_not_on_base
from luthier.plugins.ppo.forward import states_at
from luthier.plugins.ppo.roles import Roles, active_names

if TYPE_CHECKING:
    from luthier.core.config.schema import Choice
    from luthier.core.runtime import Runtime

PREFIX: Final = "base_model.model."


def open_rewards_on(roles: Roles, choices: Sequence[Choice], runtime: Runtime) -> Rewards:
    """The terms ready to score, reward runs on the policy's base where they fit. Raises RewardError where one cannot be."""
    terms: list[OpenTerm] = []
    for choice, (name, term) in zip(choices, parse_rewards(choices), strict=True):
        shared = _shared(roles, name, term, runtime) if isinstance(term, RunTerm) else None
        if shared is not None:
            terms.append(OpenTerm(name=name, weight=term.weight, score=shared))
        else:
            opened = open_rewards((_unshared(choice),), runtime=runtime).terms[0]
            terms.append(dataclasses.replace(opened, name=name))
    return Rewards(terms)


def _unshared(choice: Choice) -> Choice:
    """A choice whose reward run is loaded as a model of its own."""
    if "share" not in choice.options:
        return choice
    options = {key: value for key, value in choice.options.items() if key != "share"}
    return dataclasses.replace(choice, options=choice.options.__class__(options))


def _shared(roles: Roles, name: str, term: RunTerm, runtime: Runtime) -> RewardModel | None:
    """The run's scores from the policy's base; None where it gets a model of its own."""
    if term.share in (False, "false"):
        return None
    folder = Path(term.path).expanduser()
    plan = reward_plan(name, folder)
    reason = why_not(runtime, term, folder)
    if reason:
        if term.share in (True, "true"):
            raise RewardError(
                name,
                f"{folder} cannot share the policy's base model, because {reason}",
                fix="write share: auto, which loads a second model, or train the reward model on the policy's base",
            )
        runtime.notice(f"reward {name}: {folder} is loaded as a second model, because {reason}")
        return None
    model = SharedScores(roles, name, folder)
    tokenizer = run_tokenizer(plan, folder, runtime.catalog)
    model.pad_token_id = tokenizer.pad_token_id
    runtime.notice(f"reward {name}: the adapter and the score head of {folder} are on the policy's own base model")
    return RewardModel(name, model, tokenizer, policy=runtime.tokenizer, batch_tokens=term.batch_tokens)


def why_not(runtime: Runtime, term: RunTerm, folder: Path) -> str:
    """As `why_not_on_base`, of the model as it is."""
    reason = why_not_on_base(runtime.plan, term, runtime.catalog)
    if reason:
        return reason
    config, kinds = _config(folder), {str(one.peft_type) for one in runtime.model.peft_config.values()}  # type: ignore[union-attr]
    if {str(config.peft_type)} != kinds:
        return f"its adapter is of PEFT's kind {config.peft_type.value}, and the policy's is another"
    if f"{PREFIX}{SCORE}.weight" not in read_weights(folder / ADAPTER_WEIGHTS):
        return "no score head lies beside its adapter"
    return ""


def _config(folder: Path) -> Any:
    """The reward adapter's configuration as one of a language model: the score head is no module of that."""
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    whole = [one for one in config.modules_to_save or () if one not in (SCORE, "classifier")]
    config.modules_to_save = whole or None
    return config


class SharedScores:
    """In the place of a model with a score head: called with sequences, gives `.logits` (B, 1) from the shared base."""

    pad_token_id: int | None = None

    def __init__(self, roles: Roles, name: str, folder: Path) -> None:
        # Without dots, which PEFT has no use for in a name; numbered, because there may be several.
        self._model, self._adapter = roles.model, name.replace("run", "reward")
        self._policy = active_names(roles.model)
        self._head = attach(self._model, folder, self._adapter, self._policy)
        self.config = self._model.config

    def parameters(self) -> Any:
        return self._model.parameters()

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """As transformers' ...ForSequenceClassification: the score of a row is that of its last token that is no padding."""
        token = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(input_ids != self.pad_token_id, token, 0).max(dim=1).values
        instead = dict.fromkeys(self._policy) | {self._policy[0]: self._adapter}
        with evaluating(self._model), active_adapters(self._model, **instead):
            hidden, _ = states_at(self._model, input_ids, attention_mask, token == last[:, None], logits=False)
        with torch.autocast(hidden.device.type, enabled=False):
            return SimpleNamespace(logits=hidden.float() @ self._head.mT)


def attach(model: Any, folder: Path, adapter: str, policy: Sequence[str]) -> Tensor:
    """Put a reward run's adapter on `model`, frozen and inactive; returns the score head, float32 (1, H).

    Every parameter trains or not as before, and every layer has the adapters active that it had; a layer that only the
    reward adapts has those of the policy, which are none of its own. Raises ModelError where the file is of other layers.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    active = {id(layer): layer._active_adapter for layer in adapter_layers(model)}
    weights = read_weights(folder / ADAPTER_WEIGHTS)
    head = weights.pop(f"{PREFIX}{SCORE}.weight").float().to(next(model.parameters()).device)
    with quiet():
        model.add_adapter(adapter, _config(folder))
        own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        require_keys(set(weights), set(own), folder / ADAPTER_WEIGHTS)
        set_peft_model_state_dict(model, weights, adapter_name=adapter)
    for layer in adapter_layers(model):
        # PEFT makes the new adapter the active one of a layer that had none.
        layer._active_adapter = active.get(id(layer), list(policy))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return head
