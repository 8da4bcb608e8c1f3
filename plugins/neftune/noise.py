"""Uniform noise on what the input embeddings put out, scaled by the length of the document that a token belongs to.

    x' = x + alpha / sqrt(L d) * u,   u uniform in [-1, 1], one for each of the L d numbers of a document

The expected length of the whole noise vector, alpha / sqrt(3), is then the same for short and long documents. L counts
real tokens: with the padded length, as the paper's and TRL's code have it, the noise of a row would depend on which other
rows happen to stand in its batch. The embeddings do not know L, so a hook reads it from the arguments of the model: with
prompt tuning PEFT looks the embeddings up before it calls the decoder, whose mask then counts the virtual tokens as well. A
hook on the decoder does the same for those who call that alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched, Undo


def add_noise(model: nn.Module, alpha: float) -> Undo:
    """Noise in training mode where gradients are recorded: not in evaluation, generation, or a reference model's answers.

    Hooks only: modules, parameters and their names stay as they are. Drawn from torch's global generator of the device.
    Raises NothingPatched where the model does not say which module its embeddings are.
    """
    find: Any = getattr(model, "get_base_model", None)
    base: Any = find() if find is not None else model
    embeddings = _asked(base, "get_input_embeddings")
    if embeddings is None:
        raise NothingPatched(f"neftune: {type(base).__name__} names no input embeddings")
    decoder = _asked(base, "get_decoder") or base
    lengths: list[Tensor] = []  # of the documents of the batch that the model is working on

    def read(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        # The outermost module is asked first, and its answer stands: inside, PEFT may have put virtual tokens before it.
        if not lengths and (found := document_lengths(keywords)) is not None:
            lengths.append(found)

    def forget(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        lengths.clear()

    def noisy(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not (module.training and torch.is_grad_enabled()):
            return None
        length = lengths[0] if lengths and lengths[0].shape[0] == output.shape[0] else None
        return output + noise_like(output, length, alpha)

    hooks = [embeddings.register_forward_hook(noisy)]
    for module in (model,) if decoder is model else (model, decoder):
        hooks.append(module.register_forward_pre_hook(read, with_kwargs=True))
        hooks.append(module.register_forward_hook(forget, always_call=True))

    def undo() -> None:
        for hook in hooks:
            hook.remove()

    return undo


def noise_like(embedded: Tensor, lengths: Tensor | None, alpha: float) -> Tensor:
    """alpha / sqrt(L d) times uniform numbers in [-1, 1], in the shape (B, T, d), dtype and device of the embeddings.

    `lengths` is (B, 1) or (B, T); None stands for T.
    """
    uniform = torch.empty_like(embedded).uniform_(-1, 1)
    tokens, width = embedded.shape[-2:]
    if lengths is None:
        return uniform * (alpha / (tokens * width) ** 0.5)
    scale = alpha / (lengths.to(embedded.device, torch.float32).clamp(min=1) * width).sqrt()
    return uniform * scale[..., None].to(uniform.dtype)


def document_lengths(arguments: Mapping[str, Any]) -> Tensor | None:
    """Real tokens in the document of each token, (B, 1) or (B, T), from a decoder's arguments; None if they say nothing.

    A mask (B, T) counts the tokens of each row. Without one, positions that begin anew at 0 tell packed documents apart.
    """
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.sum(dim=1, keepdim=True)
    if mask is None and isinstance(positions, Tensor) and positions.ndim == 2:
        document = (positions == 0).cumsum(dim=1)
        counts = torch.zeros(len(document), document.shape[1] + 1, dtype=torch.long, device=document.device)
        counts.scatter_add_(1, document, torch.ones_like(document))
        return counts.gather(1, document)
    return None


def _asked(model: Any, question: str) -> nn.Module | None:
    """What the model answers to `get_decoder` and the like; None where it has no such method or no answer."""
    if not hasattr(model, question):
        return None
    try:
        found = getattr(model, question)()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None
