"""The built-in methods, one folder each, every one an entry point like any third party's."""

if __name__ == "plugins":
    raise ImportError("this folder is the package luthier.plugins: import luthier.plugins (a module must not load twice)")

import logging
from typing import Final

# Two warnings that bitsandbytes logs and that mean nothing here; anything else that it logs is shown. They are held back
# where every plugin passes, because PEFT imports bitsandbytes by itself wherever that is installed.
# The first comes at its import on a CPU with AVX512-BF16: a kernel for inference in 4 bits was not found. That path is
# switched off, because it has no backward (core/quantized.py). The second comes from every int8 layer at every forward
# in evaluation mode: it quantises its input by way of float16, whatever format that has.
HELD_BACK: Final = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
}


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(HELD_BACK[record.name])


for _name in HELD_BACK:
    logging.getLogger(_name).addFilter(_is_news)
