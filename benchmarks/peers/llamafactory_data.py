"""LLaMA-Factory's preprocessing of one file of alpaca rows; runs in its own environment (llamafactory.sh), not in ours.

    python llamafactory_data.py '{"rows": "rows.json", "model": "folder", "workers": 2, "length": 2048, "cache": "folder"}'

Prints one line of JSON: seconds from the file to packed sequences, and what came out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Time `get_dataset` alone: imports and the tokenizer come before."""
    rows = Path(job["rows"])
    os.environ["HF_DATASETS_CACHE"] = job["cache"]
    os.environ["HF_HUB_OFFLINE"] = "1"
    (rows.parent / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": rows.name}}), encoding="utf-8")

    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = {
        "model_name_or_path": job["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "rows",
        "dataset_dir": str(rows.parent),
        "template": "smollm2",
        "cutoff_len": job["length"],
        "packing": True,
        "neat_packing": True,
        "preprocessing_num_workers": job["workers"],
        "output_dir": str(Path(job["cache"]) / "output"),
        "use_cpu": True,
        "report_to": "none",
    }
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)

    begin = time.perf_counter()
    module = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
    seconds = time.perf_counter() - begin

    data = module["train_dataset"].with_format("numpy")
    tokens = trained = 0
    for batch in data.iter(batch_size=1000):
        for mask, labels in zip(batch["attention_mask"], batch["labels"], strict=True):
            tokens += int((mask > 0).sum())
            trained += int((labels != -100).sum())
    return {"seconds": seconds, "sequences": len(data), "tokens": tokens, "trained_tokens": trained}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
