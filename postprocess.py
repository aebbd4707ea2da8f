#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Result files of an inference -> accuracy, every picture counted once. Runs without MindSpore."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_utils.entry import run_entry
from model_utils.schema import Config

RESULTS = "./result_Files"


def run_postprocess(config: Config) -> Any:
    """Compare the files in `result_dir` with the labels in `label_dir`; prints the accuracy, returns the Counts."""
    from src.build_data import holds_photos
    from src.build_deploy import evaluated_dataset, settle
    from src.prepared import count_results, label_file, read_labels

    config = settle(evaluated_dataset(config), Path(config.model_path) if config.model_path else None).config
    labels = Path(config.label_dir) if config.label_dir else label_file(Path(config.result_path), config.dataset)
    counts = count_results(Path(config.result_dir or RESULTS), read_labels(labels), config.num_classes)
    for line in accuracy_lines(counts, short_form=not holds_photos(config.dataset)):
        print(line)
    return counts


def accuracy_lines(counts: Any, *, short_form: bool) -> list[str]:
    """The lines that scripts look for; `short_form` is what CIFAR-10 users know."""
    from src.metrics import top_k

    k = top_k(counts.num_classes)
    total = f"{counts.seen} pictures: top1_correct={counts.top1_correct}, top{k}_correct={counts.topk_correct}"
    if short_form:
        return [total, f"'acc': {counts.top1():.4f}"]
    return [total, f"Top1 acc: {counts.top1():.4f}", f"Top{k} acc: {counts.topk():.4f}"]


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry(run_postprocess, argv, "postprocess.py")


if __name__ == "__main__":
    sys.exit(main())
