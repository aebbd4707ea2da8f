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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.target.exists() and not args.overwrite:
        print(f"convert_weights.py: error: {args.target} is there already; --overwrite replaces it", file=sys.stderr)
        return 2
    from model_utils.device_adapter import mindspore_version
    from model_utils.errors import DeviceError
    from src.utils.util import InputError

    try:
        mindspore_version()
        from src.convert import convert

        print("\n".join(convert(args.source, args.target, args.names)))
    except (InputError, DeviceError) as error:
        message = str(error)
    except OSError as error:
        message = f"{args.target} cannot be written: {error.strerror or error}"
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    print(f"convert_weights.py: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
