"""Where generation has to stop: at the token that ends an answer in the chat template.

Many base models name one end token (<|endoftext|>) while the template closes turns with another (<|im_end|>). A model that
was trained to write the second goes on and on unless its generation_config.json names that one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER: Final = "Qx7luthierAnswer"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first special token after an answer, as the tokenizer's chat template writes it; None where there is none."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        # It refuses this conversation (no system message, a role of another name): nothing is known of its turns.
        return None
    _, found, after = str(text).rpartition(_ANSWER)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    places = {token: after.find(token) for token in special if token} if found else {}
    # Of two that begin at one place, the longer is the token.
    return min((token for token, at in places.items() if at >= 0), key=lambda one: (places[one], -len(one)), default=None)


def stop_at_end_of_turn(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Name the end of turn among the ends of the model's generation_config, and return it; None where nothing was amiss.

    The model is a transformers one, or one around it; what it saves then holds the token.
    """
    config = getattr(model, "generation_config", None)
    token = end_of_turn(tokenizer) if config is not None else None
    if config is None or token is None:
        return None
    ends = config.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    number = tokenizer.convert_tokens_to_ids(token)
    if number in known:
        return None
    config.eos_token_id = [*known, number] if known else number
    return token
