#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Convert VGG weights of this project, the model zoo, MindCV, torchvision or timm.

  python scripts/convert_weights.py vgg16_bn.pth vgg16_bn.ckpt                   PyTorch's -> ours
  python scripts/convert_weights.py torchvision:vgg16_bn vgg16_bn.ckpt           the same, downloaded
  python scripts/convert_weights.py best.ckpt best.safetensors                   ours -> torchvision's names
  python scripts/convert_weights.py best.ckpt best_mindcv.ckpt --names mindcv    ours -> MindCV's names

IN is recognised by what it holds; OUT is a .ckpt or .safetensors file. Tensors are written as float32, and compared
with the source after reading the new file again: OUT appears only if all are equal.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.device_adapter import mindspore_version
from model_utils.errors import UserError, handled_by, run_command
from src.utils.download import weights_file
from src.utils.files import writing


def run(args: argparse.Namespace) -> None:
    if args.target.exists() and not args.overwrite:
        raise UserError(f"{args.target} is there already; --overwrite replaces it")
    mindspore_version()  # UserError if it is not installed
    with handled_by():
        from src.weights.convert import convert

    with writing(args.target):
        lines = convert(weights_file(args.source), args.target, args.names)
    print("\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="convert_weights.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="weights of these projects, or a name such as mindcv:vgg16")
    parser.add_argument("target", metavar="OUT", type=Path, help="the new file, .ckpt or .safetensors")
    parser.add_argument("--names", choices=("ours", "torchvision", "mindcv"),
                        help="whose names OUT has (default: ours in a .ckpt, torchvision's in a .safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return run_command(partial(run, parser.parse_args(argv)), "convert_weights.py")


if __name__ == "__main__":
    sys.exit(main())
