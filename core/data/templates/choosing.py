"""Which chat template a run takes, and putting it on the tokenizer, with which it is saved.

    auto        the model's own; a model without one is refused with the list to choose from, never given a default
    NAME        one of `named_templates()`
    FILE.jinja  a file, seen from the current folder, then from the configuration's

Templates are run by transformers, in its sandbox; here a file is only compiled.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.config.schema import AUTO
from luthier.core.data.sources.permission import check_local
from luthier.core.data.templates.named import ChatTemplate, named_templates
from luthier.core.data.templates.stopping import end_of_turn
from luthier.core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY: Final = "data.template"
_NEW_TOKENS: Final = "patches: [{use: new_tokens, tokens: [%s], special: true}]"
LARGEST_FILE: Final = 1 << 20  # bytes; the longest published templates have some 20 kB


def choose_template(tokenizer: PreTrainedTokenizerBase, choice: str, base: Path | None = None) -> ChatTemplate:
    """The template that `data.template: choice` means for this tokenizer, which is left as it is.

    Raises DataError where a model has none of its own, a name is unknown, or a file is missing, too large or no Jinja.
    """
    if choice == AUTO:
        return _own(tokenizer)
    if choice in named_templates():
        return named_templates()[choice]
    if _is_path(choice):
        return _from_file(Path(place_template(choice, base)))
    near = difflib.get_close_matches(choice, named_templates(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    names = ", ".join(named_templates())
    raise DataError(
        f"there is no chat template {choice!r}",
        where=KEY,
        fix=f"{hint}the names are {names}; or give the path of a .jinja file",
    )


def place_template(choice: str, base: Path | None) -> str:
    """The path of a template file made absolute, from the current folder or else `base`; a name, and a file that is not
    there, as they are."""
    if choice in named_templates() or not _is_path(choice):
        return choice
    path = Path(choice).expanduser()
    places = [path, *([base / path] if base is not None else [])]
    return next((str(place.resolve()) for place in places if place.is_file()), choice)


def apply_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> tuple[str, ...]:
    """Put the template on the tokenizer, and return warnings: tokens that it lacks, an end of turn that is no end token.

    The model's own template is left as it is, and trusted. Raises DataError where nothing would end an answer.
    """
    if template.name == AUTO:
        return ()
    tokenizer.chat_template = template.text
    named = template.name in named_templates()
    if named and not template.stop and tokenizer.eos_token is None:
        reason = f"the chat template {template.name} ends answers with the tokenizer's end token, and it has none"
        raise DataError(
            reason, where=KEY, fix="choose another template, or set eos_token in the model's tokenizer_config.json"
        )
    warnings = []
    missing = missing_tokens(tokenizer, template.special_tokens)
    if missing:
        tokens = ", ".join(f"'{token}'" for token in missing)
        warnings.append(
            f"the chat template {template.name} writes {', '.join(missing)}, which the vocabulary lacks: they are spelled "
            f"out in pieces; to learn them as tokens, add `{_NEW_TOKENS % tokens}` and an adapter that trains new rows"
        )
    if template.bos and tokenizer.bos_token is None:
        warnings.append(f"the chat template {template.name} begins with the tokenizer's bos token, and it has none")
    stop = end_of_turn(tokenizer)
    if stop is None:
        if template.stop not in missing:
            warnings.append(
                f"no special token ends an answer of the chat template {template.name}: generation will not stop"
            )
    elif stop != tokenizer.eos_token:
        warnings.append(
            f"answers end with {stop}, and the tokenizer's end token is {tokenizer.eos_token}: a saved model's "
            "generation_config.json names both; who loads an adapter alone has to give generate() the first"
        )
    return tuple(warnings)


def missing_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> list[str]:
    """Those that the tokenizer does not read as one token."""
    vocabulary = tokenizer.get_vocab()
    return [
        token
        for token in tokens
        if token not in vocabulary or vocabulary[token] not in tokenizer.encode(token, add_special_tokens=False)
    ]


def no_template(tokenizer: PreTrainedTokenizerBase) -> DataError:
    """The refusal of a model without a chat template, with what there is to choose from."""
    ready, plain, others = [], [], []
    for name, template in named_templates().items():
        if not template.special_tokens:
            plain.append(name)
        elif missing_tokens(tokenizer, template.special_tokens):
            others.append(name)
        else:
            ready.append(name)
    groups = (
        ("use tokens that this vocabulary has", ready),
        ("need no tokens of their own", plain),
        ("need tokens that this vocabulary lacks", others),
    )
    listed = "; ".join(f"{', '.join(names)} {words}" for words, names in groups if names)
    return DataError(
        "the model's tokenizer has no chat template, so conversations cannot be written as tokens",
        where=str(getattr(tokenizer, "name_or_path", "") or "tokenizer"),
        fix=f"choose one with {KEY}: {listed}; or give the path of a .jinja file, or start from an instruction-tuned model",
    )


def _own(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    own = tokenizer.chat_template
    if not own:
        raise no_template(tokenizer)
    if isinstance(own, str):
        return ChatTemplate(name=AUTO, text=own, summary="the model's own")
    if "default" not in own:
        raise DataError(
            f"the tokenizer has several chat templates ({', '.join(own)}), and none is called default",
            where=KEY,
            fix="write the one to take into a .jinja file and name that, or choose a built-in one",
        )
    with_tools = ", and tool_use for rows with tools" if "tool_use" in own else ""
    summary = f"the model's own: of {', '.join(own)} it is default{with_tools}"
    return ChatTemplate(name=AUTO, text=own["default"], texts=dict(own), summary=summary)


def _is_path(choice: str) -> bool:
    return choice.endswith((".jinja", ".jinja2", ".j2")) or "/" in choice or "\\" in choice


def _from_file(path: Path) -> ChatTemplate:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    check_local(path)  # its text is saved with the model: any file could be read that way
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"has {size:,} bytes: too large for a chat template", where=str(path), fix="give another file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        fix = "give the path as seen from the current folder, or from that of the configuration"
        raise DataError(f"the chat template cannot be read: {reason}", where=str(path), fix=fix) from error
    try:
        render_jinja_template([], chat_template=text)  # of no conversation: it is compiled only
    except TemplateSyntaxError as error:
        reason = f"the chat template is no Jinja: {error.message}"
        raise DataError(reason, where=f"{path}:{error.lineno}", fix="correct the file") from error
    return ChatTemplate(name=str(path), text=text, summary=f"the file {path.name}")
