#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw up to 32 images of the first training batch, as the network gets them, with their labels.

    python scripts/show_batch.py --data_dir=data --image_size=32 --auto_augment=randaug --mixup=0.2 --output=batch.png

Takes the flags of train.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import run_command
from model_utils.local_adapter import data_workers, usable_cores
from model_utils.schema import Config


def show(config: Config, output: Path) -> None:
    import numpy as np

    from src.build import build_train_data
    from src.data.broken_images import naming_bad_images
    from src.evaluation.plots import contact_sheet, drawable
    from src.utils.files import writing

    rank = Rank(workers=data_workers(config.num_parallel_workers, cores=usable_cores(), ranks=1))
    data = build_train_data(config, rank)
    with naming_bad_images(data.reader):
        images, labels = next(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))
    _, names = drawable(tuple(data.reader.class_names))
    captions = ["\n+ ".join(f"{names[index]} {label[index]:.2g}" for index in np.argsort(-label)[:2] if label[index])
                if label.ndim else names[label] for label in labels[:32]]
    mean, std = (np.array(values, np.float32) for values in config.preset.scaled)
    pixels = np.clip(np.round(images[:32].transpose(0, 2, 3, 1) * std + mean), 0, 255).astype(np.uint8)
    with writing(output):
        contact_sheet(output, list(pixels), captions)
    print(*config.notes, f"{len(pixels)} images of the first batch are in {output}", sep="\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("batch.png"), help="the image to write (batch.png)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: show(get_config(flags, "show_batch.py"), options.output), "show_batch.py")


if __name__ == "__main__":
    sys.exit(main())
