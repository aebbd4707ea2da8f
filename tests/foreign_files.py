# SPDX-License-Identifier: Apache-2.0
"""Weights as other projects write them: their names, and their file formats byte by byte."""

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from reference_vgg import Reference

Arrays = dict[str, np.ndarray]


# Names. All of these projects count convolutions, normalisations, activations and poolings in one row.


def numbered(model: Reference) -> Iterator[tuple[int, Any]]:
    """Each convolution with its number."""
    number = 0
    for block in model.blocks:
        for layer in block:
            yield number, layer
            number += 3 if layer.norm else 2
        number += 1


def feature_arrays(model: Reference, prefix: str, norm_parts: tuple[str, str, str, str]) -> Arrays:
    arrays = {}
    for number, layer in numbered(model):
        arrays[f"{prefix}.{number}.weight"] = layer.weight
        if layer.bias is not None:
            arrays[f"{prefix}.{number}.bias"] = layer.bias
        for part, values in zip(norm_parts, layer.norm or (), strict=False):
            arrays[f"{prefix}.{number + 1}.{part}"] = values
    return arrays


def dense_arrays(model: Reference, names: tuple[str, str, str]) -> Arrays:
    return {f"{name}.{part}": values for name, layer in zip(names, model.dense, strict=True)
            for part, values in zip(("weight", "bias"), layer, strict=True)}


MINDSPORE_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
TORCH_NORM = ("weight", "bias", "running_mean", "running_var")
CLASSIFIER = ("classifier.0", "classifier.3", "classifier.6")


def model_zoo(model: Reference) -> Arrays:
    """With the moments and counters that its training left in the checkpoint."""
    arrays = feature_arrays(model, "layers", MINDSPORE_NORM) | dense_arrays(model, CLASSIFIER)
    moments = {f"moments.{name}": np.ones_like(values) for name, values in arrays.items() if "moving" not in name}
    return arrays | moments | {"learning_rate": np.float32(0.1), "momentum": np.float32(0.9),
                               "global_step": np.array([7], np.int32)}


def mindcv(model: Reference) -> Arrays:
    return feature_arrays(model, "features", MINDSPORE_NORM) | dense_arrays(model, CLASSIFIER)


def counters(model: Reference) -> Arrays:
    return {f"features.{number + 1}.num_batches_tracked": np.int64(3)
            for number, layer in numbered(model) if layer.norm}


def torchvision(model: Reference) -> Arrays:
    return feature_arrays(model, "features", TORCH_NORM) | counters(model) | dense_arrays(model, CLASSIFIER)


def timm(model: Reference) -> Arrays:
    """Its hidden layers are convolutions over the whole map."""
    arrays = feature_arrays(model, "features", TORCH_NORM) | counters(model)
    arrays |= dense_arrays(model, ("pre_logits.fc1", "pre_logits.fc2", "head.fc"))
    hidden, features = arrays["pre_logits.fc1.weight"].shape
    side = model.map_side
    arrays["pre_logits.fc1.weight"] = arrays["pre_logits.fc1.weight"].reshape(hidden, features // side**2, side, side)
    arrays["pre_logits.fc2.weight"] = arrays["pre_logits.fc2.weight"].reshape(hidden, hidden, 1, 1)
    return arrays


# Half precision, which NumPy has only one of


class BFloat16(NamedTuple):
    """Stands in for an array: the upper halves of float32 values."""

    halves: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> "BFloat16":
        return cls((np.asarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16))

    def widened(self) -> np.ndarray:
        return (self.halves.astype(np.uint32) << 16).view(np.float32)


def raw(values: Any) -> np.ndarray:
    return values.halves if isinstance(values, BFloat16) else np.asarray(values)


# MindSpore


def write_ckpt(path: Path, arrays: Arrays) -> Path:
    """By MindSpore itself, as the model zoo and MindCV do it."""
    entries = [{"name": name, "data": mindspore.Tensor(values)} for name, values in arrays.items()]
    mindspore.save_checkpoint(entries, str(path))
    return path


# safetensors


SAFETENSORS_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int8": "I8"}


def write_safetensors(path: Path, arrays: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, values in sorted(arrays.items()):
        content = raw(values).tobytes()
        kind = "BF16" if isinstance(values, BFloat16) else SAFETENSORS_TYPES[values.dtype.name]
        header[name] = {"dtype": kind, "shape": list(raw(values).shape),
                        "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)
    return path


# PyTorch: a small pickler that writes what `torch.save` writes, and what it must not contain


STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int8": "Char"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


class Pickler:
    """Writes a pickle of texts, numbers, dictionaries and tensors; `storages` then holds the bytes of the tensors.

    With `is_legacy` the storages are described as in the files from before 2020.
    """

    def __init__(self, *, is_legacy: bool = False, lead: int = 0, is_big_endian: bool = False) -> None:
        self.storages: dict[str, tuple[int, bytes]] = {}  # key -> count of numbers, bytes
        self._is_legacy, self._lead, self._is_big_endian = is_legacy, lead, is_big_endian

    def dump(self, value: Any) -> bytes:
        return b"\x80\x02" + self.item(value) + b"."

    def item(self, value: Any) -> bytes:
        if isinstance(value, bytes):  # opcodes, as they are
            return value
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, (list, dict)):
            return self._container(value)
        return self._tensor(value)

    def _container(self, value: list[Any] | dict[str, Any]) -> bytes:
        if isinstance(value, list):
            return b"](" + b"".join(map(self.item, value)) + b"e"
        items = b"".join(self.item(key) + self.item(item) for key, item in value.items())
        # The versions of the modules hang on it as an attribute.
        return ORDERED_DICT + b"(" + items + b"u" + b"}" + self.item("_metadata") + ORDERED_DICT + b"sb"

    def _tuple(self, numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(self.item, numbers)) + b"t"

    def _tensor(self, values: Any) -> bytes:
        """Arrays keep their strides, so that a transposed one is stored as its memory lies."""
        array, key = raw(values), str(len(self.storages))
        kind = "BFloat16" if isinstance(values, BFloat16) else STORAGES[array.dtype.name]
        memory = np.concatenate([np.full(self._lead, 7, array.dtype), np.ravel(array, order="K")])
        if self._is_big_endian:
            memory = memory.astype(memory.dtype.newbyteorder(">"))
        self.storages[key] = (memory.size, memory.tobytes())
        view = b"N" if self._is_legacy else b""
        storage = (b"(" + self.item("storage") + f"ctorch\n{kind}Storage\n".encode() + self.item(key)
                   + self.item("cpu") + self.item(memory.size) + view + b"tQ")
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + self.item(self._lead) + self._tuple(array.shape)
                + self._tuple(strides) + b"\x89" + ORDERED_DICT + b"tR")


def write_pth(path: Path, value: Any, *, lead: int = 0, byteorder: str = "little") -> Path:
    """The zip archive of today; `lead` numbers of something else stand before each tensor in its storage."""
    pickler = Pickler(lead=lead, is_big_endian=byteorder == "big")
    pickled = pickler.dump(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, (_, content) in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy_pth(path: Path, value: Any) -> Path:
    """The row of pickles from before 2020, as torchvision's older files are."""
    pickler = Pickler(is_legacy=True)
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    system = {"protocol_version": 1001, "little_endian": True}
    out = magic + b"\x80\x02M\xe9\x03." + pickler.dump(system) + pickler.dump(value)
    out += pickler.dump(list(pickler.storages))
    for count, content in pickler.storages.values():
        out += struct.pack("<q", count) + content
    path.write_bytes(out)
    return path


Writer = Callable[[Path, dict[str, Any]], Path]

FORMATS: dict[str, tuple[Callable[[Reference], Arrays], Writer, str]] = {  # names, format, ending
    "model zoo": (model_zoo, write_ckpt, ".ckpt"),
    "MindCV": (mindcv, write_ckpt, ".ckpt"),
    "torchvision": (torchvision, write_pth, ".pth"),
    "torchvision before 2020": (torchvision, write_legacy_pth, ".pth"),
    "torchvision safetensors": (torchvision, write_safetensors, ".safetensors"),
    "timm": (timm, write_safetensors, ".safetensors"),
    "timm pth": (timm, write_pth, ".pt"),
}
