"""Chat templates: how a conversation is written as text.

named.py     the built-in ones by name, one NAME.jinja each
choosing.py  which one `data.template` means, and putting it on the tokenizer
stopping.py  the token that ends an answer, for generation_config.json
"""

from __future__ import annotations

from luthier.core.data.templates.choosing import apply_template, choose_template, no_template, place_template
from luthier.core.data.templates.named import ChatTemplate, named_templates
from luthier.core.data.templates.stopping import end_of_turn, stop_at_end_of_turn

__all__ = [
    "ChatTemplate",
    "apply_template",
    "choose_template",
    "end_of_turn",
    "named_templates",
    "no_template",
    "place_template",
    "stop_at_end_of_turn",
]
