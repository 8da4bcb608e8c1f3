"""Models small enough to build for every check, one of each design that a method has to cope with.

Two layers of 64 features with random weights, built from transformers' configuration: no file and no network. The weights
are larger than those that training starts from, and vectors are not left at zero and one: attention is sharp, windows
and soft-capping bite, biases count, so that a wrong number shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from luthier.core.frozen import FrozenDict, freeze, thaw
from luthier.core.saving import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# gpt2: Conv1D, fused qkv; phi3: fused qkv and gate_up; gemma2: tied, soft-capping, sliding windows; mixtral: fused experts.
KINDS: Final = ("llama", "qwen3", "gpt2", "phi3", "gemma2", "mixtral")
# transformers' own attention in plain products: what every other computation is compared with.
REFERENCE_ATTENTION: Final = "eager"
SIZES: Final[dict[str, dict[str, Any]]] = {
    "gpt2": {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "qwen3": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0,
    },
    "mixtral": {"num_local_experts": 4},
}  # fmt: skip
# Every turn closes with <eos> and a newline, as ChatML templates do; the newline is no part of an answer.
TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<eos>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
BYTES: Final = 256
QUANTIZED: Final = "quantization_config"
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@dataclass(frozen=True)
class TinyModel:
    """One of them: `kind` is transformers' model type, `changes` what its configuration says differently.

    With a "quantization_config" in `changes` it is a checkpoint that arrives quantised.
    """

    kind: str
    changes: FrozenDict[str, Any] = field(default_factory=FrozenDict)

    @property
    def config(self) -> Any:
        """A new transformers configuration."""
        from transformers import AutoConfig

        tokenizer = tiny_tokenizer()
        common = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.125,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return AutoConfig.for_model(self.kind, **common | SIZES.get(self.kind, {}) | thaw(self.changes))

    @property
    def folder(self) -> Path:
        """Where it lies with its tokenizer, float32, the same weights each time; not to be written to."""
        return _built(self)

    def load(self, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
        """A fresh copy, in evaluation mode; `options` go to `from_pretrained`."""
        from transformers import AutoModelForCausalLM

        options = {"attn_implementation": REFERENCE_ATTENTION, "dtype": dtype} | options
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(str(self.folder), **options)
        return model.eval()


def tiny_model(kind: str, changes: Mapping[str, Any] | None = None) -> TinyModel:
    """`tiny_model("llama", {"tie_word_embeddings": True})`."""
    return TinyModel(kind, freeze(dict(changes or {})))


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token for each byte, ids 0-255 in the order of the byte-level alphabet; then the special tokens.

    Its chat template marks what the assistant says. Every caller gets the same one: copy it to change it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        additional_special_tokens=list(SPECIAL),
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def token_batch(rows: int = 2, length: int = 20, seed: int = 0) -> dict[str, Tensor]:
    """{"input_ids", "attention_mask", "labels"}, each (rows, length): random tokens, the first quarter of them only read."""
    ids = torch.randint(0, BYTES, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : length // 4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@cache
def _built(tiny: TinyModel) -> Path:
    from transformers import AutoModelForCausalLM

    scratch = tempfile.TemporaryDirectory(prefix=f"luthier-{tiny.kind}-")
    _FOLDERS.append(scratch)
    folder = Path(scratch.name)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        if QUANTIZED in tiny.changes:
            plain = {key: value for key, value in tiny.changes.items() if key != QUANTIZED}
            model: Any = TinyModel(tiny.kind, FrozenDict(plain)).load(quantization_config=thaw(tiny.changes[QUANTIZED]))
        else:
            model = AutoModelForCausalLM.from_config(tiny.config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder
