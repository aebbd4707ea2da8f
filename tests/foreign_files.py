# SPDX-License-Identifier: Apache-2.0
"""Weights as other projects have them: a VGG in NumPy, its parameters under their names, in their file formats."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from safetensors.numpy import save_file

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from model_utils.errors import UserError
from src import build

Arrays = dict[str, np.ndarray]

# The network, as its parameters by our names. The logits of loaded weights are compared with those that NumPy computes.

EPSILON = 1e-5  # of the batch normalisation, in PyTorch and in MindSpore
CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


@cache
def make(network: str, *, batch_norm: bool, bias: bool = True, classes: int = 7, map_side: int = 2,
         channels: tuple[int, ...] = (8, 16, 32, 64, 64), hidden: int = 512) -> Arrays:
    """Weights under which every tensor, and the epsilon too, changes the logits."""
    random = np.random.RandomState(0)

    def draw(*shape: int, fan_in: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    arrays, index, in_channels = {}, 0, 3
    for layers, count in zip(CONVOLUTIONS[network], channels, strict=True):
        for _ in range(layers):
            arrays[f"layers.{index}.weight"] = draw(count, in_channels, 3, 3, fan_in=4.5 * in_channels)
            if bias:
                arrays[f"layers.{index}.bias"] = draw(count, fan_in=100)
            if batch_norm:
                variance = random.uniform(2e-5, 2e-4, count).astype(np.float32)  # so small that the epsilon counts
                arrays |= {f"layers.{index + 1}.gamma": 0.01 + draw(count, fan_in=9e4),
                           f"layers.{index + 1}.beta": draw(count, fan_in=100),
                           f"layers.{index + 1}.moving_mean": draw(count, fan_in=100),
                           f"layers.{index + 1}.moving_variance": variance}
            index += 3 if batch_norm else 2
            in_channels = count
        index += 1
    units = (in_channels * map_side**2, *(hidden, hidden) * (hidden > 0), classes)
    for number, fan_in, fan_out in zip((0, 3, 6) if hidden else (6,), units[:-1], units[1:], strict=True):
        arrays |= {f"classifier.{number}.weight": draw(fan_out, fan_in, fan_in=fan_in / 2),
                   f"classifier.{number}.bias": draw(fan_out, fan_in=100)}
    return arrays


def reference_logits(arrays: Arrays) -> np.ndarray:
    """Of `random_images`."""
    x = random_images().astype(np.float64)
    convolutions = [int(name.split(".")[1]) for name, values in arrays.items() if values.ndim == 4]
    for index, following in zip(convolutions, [*convolutions[1:], None], strict=True):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        weight = arrays[f"layers.{index}.weight"]
        x = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        x = x + arrays.get(f"layers.{index}.bias", np.zeros(len(weight)))[:, None, None]
        has_norm = f"layers.{index + 1}.gamma" in arrays
        if has_norm:
            gamma, beta, mean, variance = (arrays[f"layers.{index + 1}.{part}"][:, None, None] for part in OUR_NORM)
            x = (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta
        x = np.maximum(x, 0)
        if following != index + (3 if has_norm else 2):  # a pooling is numbered between them
            count, channels, height, width = x.shape
            x = x.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    x = x.reshape(len(x), -1)
    for number in (0, 3, 6) if "classifier.0.weight" in arrays else (6,):
        x = x @ arrays[f"classifier.{number}.weight"].T + arrays[f"classifier.{number}.bias"]
        x = x if number == 6 else np.maximum(x, 0)
    return x


def random_images() -> np.ndarray:
    return np.random.RandomState(9).standard_normal((2, 3, 64, 64)).astype(np.float32)


# The names of other projects, which all number convolutions, normalisations, activations and poolings alike.

OUR_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
TIMM_DENSE = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}


def model_zoo(arrays: Arrays) -> Arrays:
    """With the moments and counters that its training left in the checkpoint."""
    moments = {f"moments.{name}": np.ones_like(values) for name, values in arrays.items() if "moving" not in name}
    return arrays | moments | {"learning_rate": np.float32(0.1), "momentum": np.float32(0.9),
                               "global_step": np.array([7], np.int32)}


def mindcv(arrays: Arrays) -> Arrays:
    return {name.replace("layers.", "features."): values for name, values in arrays.items()}


def torchvision(arrays: Arrays) -> Arrays:
    found = {}
    for name, values in mindcv(arrays).items():
        layer, part = name.rsplit(".", 1)
        found[f"{layer}.{TORCH_NORM.get(part, part)}"] = values
        if part == "moving_variance":
            found[f"{layer}.num_batches_tracked"] = np.array(3)
    return found


def timm(arrays: Arrays) -> Arrays:
    """Its hidden layers are convolutions over the whole map."""
    found = {}
    for name, values in torchvision(arrays).items():
        layer, part = name.rsplit(".", 1)
        if part == "weight" and layer in ("classifier.0", "classifier.3"):
            side = round((values.shape[1] / max(len(item) for item in arrays.values() if item.ndim == 4)) ** 0.5)
            side = side if layer == "classifier.0" else 1
            values = values.reshape(len(values), -1, side, side)
        found[f"{TIMM_DENSE.get(layer, layer)}.{part}"] = values
    return found


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name not in names}


# Their file formats. `BFloat16` marks the upper halves of float32 values, for which NumPy has no type.


class BFloat16(np.ndarray):
    pass


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(BFloat16)


def write_ckpt(path: Path, arrays: Arrays) -> Path:
    """By MindSpore itself, as the model zoo and MindCV do it: without a checksum."""
    mindspore.save_checkpoint([{"name": name, "data": mindspore.Tensor(values)} for name, values in arrays.items()],
                              str(path.with_suffix(".ckpt")))
    return path.with_suffix(".ckpt").rename(path)


def write_safetensors(path: Path, arrays: Arrays) -> Path:
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    marked = [name for name, values in arrays.items() if isinstance(values, BFloat16)]
    if marked:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8:8 + length].replace(b'"U16"', b'"BF16"')
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length:])
    return path


STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int8": "Char"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def plain_opcodes(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]  # without the number of the protocol and the end


def torch_opcodes(value: Any, storages: Arrays, lead: int = 0, order: str = "<", view: bytes = b"") -> bytes:
    """The pickle of arrays as `torch.save` writes tensors, without beginning and end; fills `storages`.

    `lead` numbers of something else are stored before each tensor. `view` is what old files say of each storage.
    """
    if isinstance(value, dict):
        items = b"".join(plain_opcodes(name) + torch_opcodes(item, storages, lead, order, view)
                         for name, item in value.items())
        metadata = b"}" + plain_opcodes("_metadata") + ORDERED_DICT + b"sb"  # an attribute of every state dict
        return ORDERED_DICT + b"(" + items + b"u" + metadata
    if not isinstance(value, np.ndarray):
        return plain_opcodes(value)
    kind = "BFloat16" if isinstance(value, BFloat16) else STORAGES[value.dtype.name]
    memory = np.concatenate([np.full(lead, 7, value.dtype), np.ravel(np.asarray(value), order="K")])
    key, strides = str(len(storages)), tuple(stride // value.itemsize for stride in value.strides)
    storages[key] = memory.astype(memory.dtype.newbyteorder(order))
    storage = (plain_opcodes("storage") + f"ctorch\n{kind}Storage\n".encode()
               + b"".join(map(plain_opcodes, (key, "cpu", memory.size))) + view)
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ"
            + b"".join(map(plain_opcodes, (lead, value.shape, strides, False))) + ORDERED_DICT + b"tR")


def write_archive(path: Path, pickled: bytes, storages: Arrays, byteorder: str = "little") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_pth(path: Path, value: Any, *, lead: int = 0, byteorder: str = "little") -> Path:
    """The zip archive of PyTorch since 1.6."""
    storages: Arrays = {}
    opcodes = torch_opcodes(value, storages, lead, ">" if byteorder == "big" else "<")
    return write_archive(path, b"\x80\x02" + opcodes + b".", storages, byteorder)


LEGACY_HEAD = b"".join(pickle.dumps(item, protocol=2) for item in (
    0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}))


def write_legacy_pth(path: Path, value: Any) -> Path:
    """The sequence of pickles of PyTorch before 1.6, as torchvision's VGG files are."""
    storages: Arrays = {}
    content = LEGACY_HEAD + b"\x80\x02" + torch_opcodes(value, storages, view=b"N") + b"."
    content += pickle.dumps(list(storages), protocol=2)
    for values in storages.values():
        content += struct.pack("<q", values.size) + values.tobytes()
    path.write_bytes(content)
    return path


FORMATS: dict[str, tuple[Callable[[Arrays], Arrays], Callable[[Path, Arrays], Path], str]] = {
    "model zoo": (model_zoo, write_ckpt, ".ckpt"),
    "MindCV": (mindcv, write_ckpt, ".ckpt"),
    "torchvision": (torchvision, write_pth, ".pth"),
    "torchvision before PyTorch 1.6": (torchvision, write_legacy_pth, ".pth"),
    "torchvision safetensors": (torchvision, write_safetensors, ".safetensors"),
    "timm": (timm, write_safetensors, ".safetensors"),
    "timm pth": (timm, write_pth, ".pt"),
}


def load(path: Path, *flags: str) -> build.LoadedModel:
    """As eval.py does it, but op by op: a network is called once here, and compiling it would take longer."""
    config = get_config(["--device_target=CPU", "--graph_mode=False", *flags])
    return build.load_model(config, set_up_device(config), path)


def logits(path: Path) -> np.ndarray:
    """Of `random_images`."""
    return load(path).network.set_train(False)(mindspore.Tensor(random_images())).asnumpy()


def refusal_of(path: Path, *flags: str) -> str:
    """The error with which a file is refused; it names the file."""
    with pytest.raises(UserError) as caught:
        load(path, *flags)
    assert str(path) in str(caught.value) and caught.value.exit_status == 2
    return str(caught.value)
