#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack images in files, TFRecord or MindRecord files into MindRecord files.

    python scripts/convert_dataset.py --output=data/packed --dataset=photos --data_dir=DIR

Takes the flags of train.py for what is read. Images are packed as they are, in their order. The result is read back
before it appears: the count, all labels, and the images of a sample must be those of the source.
--val_split=0.2 makes training and evaluation images of one set of them.
Exit status: 0 done, 2 the data or the output folder is not right.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config
from model_utils.errors import run_command
from model_utils.reading import whole
from src.data.tools import convert_dataset


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder, for the files")
    parser.add_argument("--shards", type=whole(0, 10_000), default=0,
                        help="how many files per split (default: of about 128 MB)")
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: those that are there)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: convert_dataset(options, get_config(flags, "convert_dataset.py")), "convert_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
