#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Download weights that torchvision and MindCV publish, and print where they are.

  python scripts/download_weights.py torchvision:vgg16_bn mindcv:vgg16

train.py, eval.py, export.py, infer.py and convert_weights.py take these names too, and download what is missing. The
files are in the folder that VGG_CACHE names, else in ~/.cache/vgg_mindspore. VGG_MIRROR names another place of the
same files, such as http://10.0.0.1/vgg.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import run_command
from model_utils.reading import whole
from src.utils.download import WEIGHTS, weights_file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="download_weights.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=WEIGHTS, help="such as torchvision:vgg16_bn")
    parser.add_argument("--list", action="version", help="print all names and addresses",
                        version="\n".join(f"{name:22}{url}" for name, url in WEIGHTS.items()))
    parser.add_argument("--retries", type=whole(0, 1000), default=5, help="how often to try again (default 5)")
    parser.add_argument("--timeout", type=whole(1, 86_400), default=30, help="seconds without a byte (default 30)")
    args = parser.parse_args(argv)

    def run() -> None:
        for name in args.names:
            print(weights_file(name, retries=args.retries, timeout=args.timeout))

    return run_command(run, "download_weights.py")


if __name__ == "__main__":
    sys.exit(main())
