# SPDX-License-Identifier: Apache-2.0
"""Result files of an inference -> accuracy, every image counted once. Runs without MindSpore."""

from pathlib import Path
from typing import Any

from model_utils.schema import Config

RESULTS = "./result_Files"


def run_postprocess(config: Config) -> Any:
    """Compare the files in `result_dir` with the labels in `label_dir`; prints the accuracy, returns the Counts."""
    from src.deploy.build_deploy import evaluated_dataset, settle
    from src.deploy.prepared import count_results, label_file, read_labels

    config = settle(evaluated_dataset(config), Path(config.model_path) if config.model_path else None).config
    labels = Path(config.label_dir) if config.label_dir else label_file(Path(config.result_path), config.dataset)
    counts = count_results(Path(config.result_dir or RESULTS), read_labels(labels), config.num_classes)
    for line in accuracy_lines(counts, short_form=not config.photos):
        print(line)
    return counts


def accuracy_lines(counts: Any, *, short_form: bool) -> list[str]:
    """The lines that scripts look for; `short_form` is what CIFAR-10 users know."""
    from src.evaluation.metrics import top_k

    k = top_k(counts.num_classes)
    total = f"{counts.seen} images: top1_correct={counts.top1_correct}, top{k}_correct={counts.topk_correct}"
    if short_form:
        return [total, f"'acc': {counts.top1():.4f}"]
    return [total, f"Top1 acc: {counts.top1():.4f}", f"Top{k} acc: {counts.topk():.4f}"]
