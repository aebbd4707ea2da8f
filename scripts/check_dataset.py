#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set and say what is in it and what is wrong with it.

    python scripts/check_dataset.py --config_path=imagenet2012_config.yaml --data_dir=data/imagenet

Takes the flags of train.py. Reports images per class, sizes, broken images, wrong labels, and images that are in both
training and evaluation. Exit status: 0 all is well, 1 something is wrong, 2 nothing to check.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config
from model_utils.errors import run_command
from model_utils.reading import whole
from src.data.tools import check_dataset


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: both)")
    parser.add_argument("--show", type=whole(0, 10**9), default=20,
                        help="how many problems of a kind to name (default 20)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: check_dataset(options, get_config(flags, "check_dataset.py")), "check_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
