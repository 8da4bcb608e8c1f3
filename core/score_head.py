"""The score head of a loaded model: new where the checkpoint has none, float32 whatever the model computes in.

Rewards are compared by their differences: bfloat16 would round a reward of 2 to steps of 1/64, and swallow most of what an
optimizer adds to the one vector that the head is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from luthier.core.data.templates.stopping import end_of_turn
from luthier.core.errors import LuthierError, ModelError
from luthier.core.scoring import SCORE

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

# Standard deviation of a new head, a tenth of transformers' usual one. The hidden states behind a final norm have entries of
# 1 or more (SmolLM2: 2): with 0.02 the rewards of a pair begin about 1 apart by chance, and held-out pairs keep this noise.
INITIAL_STD: Final = 0.002


@cache
def head_class() -> type[nn.Linear]:
    """A linear layer from (..., H) in any floating-point format to (..., 1), in float32 at least, autocast or not."""
    import torch
    from torch.nn import functional

    class ScoreHead(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            wide = torch.promote_types(hidden.dtype, torch.float32)
            with torch.autocast(hidden.device.type, enabled=False):
                return functional.linear(hidden.to(wide), self.weight.to(wide))

    return ScoreHead


def install_head(model: Any, info: dict[str, Any], *, seed: int, notice: Callable[[str], None]) -> dict[str, Any]:
    """Put a float32 head on a loaded ...ForSequenceClassification; returns what is left of its loading report.

    The weights of the checkpoint's own head stay. Where it has none, a new one is drawn from a normal distribution by
    `seed`, and `notice` hears of it; the language-model head that the checkpoint has instead is no longer unexpected.
    """
    import torch

    key = f"{SCORE}.weight"
    other = {name: shapes[0] for name, *shapes in info["mismatched_keys"]}
    if key in other:
        raise ModelError(
            f"the checkpoint has a head of {other[key][0]} numbers, and a score is one",
            where=model.name_or_path,
            fix="take the language model, or a checkpoint that was trained as a reward model",
        )
    is_new = key in info["missing_keys"]
    head = head_class()(model.config.get_text_config().hidden_size, 1, bias=False, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        if is_new:
            head.weight.normal_(0.0, INITIAL_STD, generator=torch.Generator().manual_seed(seed))
        else:
            head.weight.copy_(getattr(model, SCORE).weight)
    setattr(model, SCORE, head.to(next(model.parameters()).device))
    if is_new:
        notice(f"the score head is new: {head.in_features} weights, normal with deviation {INITIAL_STD}, by the run's seed")
    unexpected = set(info["unexpected_keys"])
    if unexpected:
        unexpected -= _language_model_head(model)
    return info | {"missing_keys": set(info["missing_keys"]) - {key}, "unexpected_keys": unexpected}


def _language_model_head(model: Any) -> set[str]:
    """Names of the tensors that the causal language model of this configuration has and the scoring one has not."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(model.config)
    return set(causal.state_dict()) - set(model.state_dict())


def pad_apart(tokenizer: PreTrainedTokenizerBase) -> str:
    """Pad with the unknown token where the padding token ends answers too; returns what is worth knowing about that.

    With one token for both, a score is read before it and cannot say that an answer ended. Texts do not hold the unknown
    token where a tokenizer is made of bytes, and where they do, they seldom end with it. Nothing is done where there is
    none, or it has a part in conversations itself.
    """
    ends = {tokenizer.eos_token, end_of_turn(tokenizer)}
    taken = {*ends, tokenizer.bos_token}
    unknown = tokenizer.unk_token
    if tokenizer.pad_token not in ends or unknown is None or unknown in taken:
        return ""
    before, tokenizer.pad_token = tokenizer.pad_token, unknown
    return f"padding is {unknown} instead of {before}, which ends an answer: a score then tells whether the answer ended"


def pad_with(model: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Tell the model its padding token, before which it reads the score; returns what is worth knowing about that.

    It looks for the last token that is another one: where answers end in the padding token itself (a tokenizer that pads
    with its end token), the score is read before it, whether it stands there or not. No row's score depends on its padding.
    """
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return ""
    return (
        f"{tokenizer.pad_token} ends an answer and pads a batch: scores are read at the token before it, so that they do "
        "not tell an answer that ended from one that was cut there"
    )


def require_trained_head(model: nn.Module, adapter: str) -> None:
    """Raises LuthierError where an adapter left the score head as it was drawn."""
    trained = (name.split(".") for name, parameter in model.named_parameters() if parameter.requires_grad)
    if any(SCORE in parts for parts in trained):
        return
    raise LuthierError(
        f"adapter: {adapter} does not train the score head, which is new: scores would stay random",
        where="adapter",
        fix="take another adapter; one of your own has to train what `luthier.core.scoring.score_modules` names, or to "
        "declare that it conflicts with model.score_head",
    )
