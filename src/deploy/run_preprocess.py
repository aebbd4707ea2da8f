# SPDX-License-Identifier: Apache-2.0
"""Prepare a test set for inference on a device: CIFAR-10 as .bin inputs with labels, ImageNet as a json of labels.

Runs without MindSpore.
"""

from pathlib import Path
from typing import Any

from model_utils.schema import Config


def run_preprocess(config: Config) -> Path:
    """Write into `result_path`; returns the file of labels, which is written last.

    Size and normalisation are those of `model_path` where it is given, else those of the recipe.
    """
    from src.deploy.build_deploy import deployed_reader, evaluated_dataset, settle
    from src.deploy.prepared import label_file
    from src.utils.files import make_folder
    from src.utils.logging import set_up_logging

    log = set_up_logging()
    settled = settle(evaluated_dataset(config), Path(config.model_path) if config.model_path else None)
    for line in settled.notes:
        log.info(line)
    reader = deployed_reader(settled.config, settled.class_names, photos=settled.photos)
    folder = make_folder(Path(config.result_path))
    labels = label_file(folder, settled.config.dataset)
    WRITERS[labels.suffix](settled, reader, folder, labels)
    log.info("%s: %d images, labels in %s", reader.source, len(reader), labels)
    return labels


def write_names(settled: Any, reader: Any, folder: Path, labels: Path) -> None:
    """The images stay where they are: only what each of them shows is written down."""
    from src.deploy.build_deploy import file_names
    from src.deploy.prepared import write_label_names

    write_label_names(labels, dict(zip(file_names(reader), reader.labels.tolist(), strict=True)))


def write_inputs(settled: Any, reader: Any, folder: Path, labels: Path) -> None:
    """The images as the network takes them, several per file, and their labels in the same order."""
    from src.deploy.build_deploy import dataset_items
    from src.deploy.prepared import write_prepared

    config = settled.config
    batch_size = config.per_batch_size or settled.batch_size or config.batch_size
    write_prepared(folder, [item.read for item in dataset_items(config, reader)], reader.labels, config.preset,
                   prefix=f"{config.network.upper()}_data", batch_size=batch_size, labels_file=labels)


WRITERS = {".json": write_names, ".npy": write_inputs}
