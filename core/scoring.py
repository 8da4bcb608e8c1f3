"""Models that give a sequence one number: a score head on the last token, in place of the language-model head.

    causal   decoder -> hidden states (B, T, H) -> head (V, H)    -> logits (B, T, V)
    score    decoder -> hidden states (B, T, H) -> score (1, H)   -> the number at the last token that is no padding (B, 1)

transformers' ...ForSequenceClassification with `num_labels=1`. The decoder is the same, under the same names: a profile of
the one becomes that of the other by its head alone. What the loaded model needs is in score_head.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Final

from luthier.core.contracts import Support, Task
from luthier.core.frozen import FrozenDict
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.core.targets import Target, every_target

if TYPE_CHECKING:
    from collections.abc import Sequence

# The role, and what transformers calls the module in every class that is taken here.
SCORE: Final = "score"
SCORE_HEAD: Final = "model.score_head"
_LANGUAGE_MODEL: Final = ("head", "head.transform")


def profile_for(profile: ArchitectureProfile, task: Task) -> ArchitectureProfile:
    """The profile of the model that a stage of this task trains, from that of the causal language model.

    A scoring model has the role `score` in place of `head`: one bias-free linear layer, H features to one number.
    """
    if task == "causal" or profile.has(SCORE):
        return profile
    name = _class_name(profile.model_type)
    group = RoleGroup(
        pattern=SCORE, kind="linear", shape=(1, profile.hidden_size), in_features=profile.hidden_size, out_features=1
    )
    kept = {role: groups for role, groups in profile.roles.items() if role not in _LANGUAGE_MODEL}
    counts = {role: count for role, count in profile.role_parameters.items() if role not in _LANGUAGE_MODEL}
    dropped = sum(profile.role_parameters.get(role, 0) for role in _LANGUAGE_MODEL)
    return dataclasses.replace(
        profile,
        architecture=name or profile.architecture,
        roles=FrozenDict({**kept, SCORE: (group,)}),
        role_parameters=FrozenDict({**counts, SCORE: profile.hidden_size}),
        parameters=profile.parameters - dropped + profile.hidden_size,
        tied_embeddings=False,
        final_softcap=None,
        traits=profile.traits - {"model.tied_embeddings"},
        unclassified=tuple(one for one in profile.unclassified if one.module != "(head)"),
    )


def scores(profile: ArchitectureProfile) -> Support:
    """Whether transformers has a class with this model's decoder that reads a number off the last token; else why not."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    other = "choose a model whose ...ForSequenceClassification reads the last token: llama, qwen, mistral, gemma, gpt2, ..."
    name = _class_name(profile.model_type)
    if profile.remote_code or name is None:
        which = "code that comes with the model" if profile.remote_code else "transformers"
        return Support.no(f"{which} has no ...ForSequenceClassification for model type {profile.model_type}", other)
    cls: Any = getattr(transformers, name)
    # A forward may only pass on what it is given; the one that it calls is looked at too.
    forwards = [_source(vars(one)["forward"]) for one in cls.__mro__ if "forward" in vars(one)]
    if f"self.{SCORE} =" not in _source(cls.__init__) or not any("pad_token_id" in one for one in forwards):
        return Support.no(f"transformers' {name} does not read a number off the last token of a sequence", other)
    causal: Any = getattr(transformers, profile.architecture, None)
    decoder = MODEL_MAPPING_NAMES.get(profile.model_type)
    if causal is not None and f"{decoder}(" not in _source(causal.__init__):
        return Support.no(f"transformers' {name} is built around another model than {profile.architecture} is", other)
    return Support.yes()


def score_targets(profile: ArchitectureProfile) -> tuple[Target, ...]:
    """The score head of a scoring model, which trains in whole whatever else does; none for a language model."""
    return tuple(target for target in every_target(profile) if target.role == SCORE)


def score_modules(profile: ArchitectureProfile) -> Sequence[str]:
    """The same by name."""
    return [target.name for target in score_targets(profile)]


def _source(method: Any) -> str:
    return inspect.getsource(inspect.unwrap(method)) if inspect.isfunction(method) else ""


def _class_name(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    name = NAMES.get(model_type)
    return name if isinstance(name, str) else None
