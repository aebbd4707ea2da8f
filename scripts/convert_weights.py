#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Convert VGG weights between this project, the model zoo, MindCV, torchvision and timm.

  python scripts/convert_weights.py vgg16_bn.pth vgg16_bn.ckpt                 PyTorch's -> ours
  python scripts/convert_weights.py best.ckpt best.safetensors                 ours -> torchvision's names
  python scripts/convert_weights.py best.ckpt best.safetensors --names timm    ours -> timm's names

IN is recognised by what it holds; OUT is a .ckpt, .safetensors, .pth or .pt file. Tensors are streamed one by one,
written as float32, and compared with the source after reading the new file again: OUT appears only if all are equal.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import (
    UserError,
    run_command,  # noqa: E402
)
from src.utils.util import writing  # noqa: E402

NAMES = ("ours", "model_zoo", "mindcv", "torchvision", "timm")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert_weights.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", type=Path, help="weights of any of these projects")
    parser.add_argument("target", metavar="OUT", type=Path, help="the new file")
    parser.add_argument("--names", choices=NAMES, help="whose names OUT has (default: ours in a .ckpt, torchvision's "
                                                       "in the others)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if args.target.exists() and not args.overwrite:
        raise UserError(f"{args.target} is there already; --overwrite replaces it")
    from model_utils.device_adapter import mindspore_version

    mindspore_version()  # an error here if there is none
    from src.weights.convert import convert

    with writing(args.target):
        lines = convert(args.source, args.target, args.names)
    print("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(partial(run, parse_args(argv)), "convert_weights.py")


if __name__ == "__main__":
    sys.exit(main())
