# SPDX-License-Identifier: Apache-2.0
"""Files of weights as arrays, whoever wrote them: MindSpore's .ckpt, .safetensors, PyTorch's .pth and .pt.

The format follows from the first bytes, not from the name. Nothing that is pickled in a file is run.
"""

import io
import json
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors

from model_utils.errors import UserError
from model_utils.reading import check_regular
from src.weights.checkpoint import BFLOAT16, CKPT, Contents, read_file

SAFETENSORS, TORCH = "safetensors", "torch"
WRITTEN_SUFFIXES = {".ckpt": CKPT, ".safetensors": SAFETENSORS}
CKPT_START = b"\n"  # the first field of a protobuf message
ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # PyTorch before 1.6
LARGEST_HEADER_BYTES = 100 << 20  # of a safetensors file
SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4",
                     "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def read_weight_file(path: Path) -> Contents:
    """Read any of the formats. UserError if the file is damaged, refused, or something else."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror.lower()}") from None
    if start.startswith((ZIP_START, LEGACY_START)):
        return _read_torch(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER_BYTES:
        return _read_safetensors(path)
    if not start:
        raise UserError(f"{path}: is empty")
    if not start.startswith(CKPT_START):  # such as the web page of a failed download, or a pointer of Git LFS
        raise UserError(f"{path}: is damaged, or no file of weights: it begins with {start!r}")
    return read_file(path)


def as_float32(array: np.ndarray) -> np.ndarray:
    """A copy as contiguous float32: half precision is widened, double precision rounded."""
    if array.dtype.names:
        return (array["bfloat16"].astype("<u4", order="C") << 16).view("<f4")
    return array.astype("<f4", order="C")


def type_name(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype.names else array.dtype.newbyteorder("=").name


def _read_safetensors(path: Path) -> Contents:
    data = path.read_bytes()
    try:
        entries = safetensors.deserialize(data)
        texts = json.loads(data[8:8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
        arrays = {name: np.frombuffer(entry["data"], SAFETENSORS_TYPES[entry["dtype"]]).reshape(entry["shape"])
                  for name, entry in sorted(entries)}
    except KeyError as error:
        raise UserError(f"{path}: holds numbers of the type {error.args[0]}, which is not read here") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a safetensors file, it is damaged or cut off: {error}") from None
    return Contents(arrays, texts, kind=SAFETENSORS)


# PyTorch: a pickle that describes tensors, and their bytes beside it

TORCH_TYPES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": BFLOAT16, "DoubleStorage": "<f8",
               "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
               "ByteStorage": "u1", "BoolStorage": "?"}
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where scripts put the tensors
MOST_TUPLES = 50_000  # in a pickle: some five per tensor; hashing deeper nested ones would overflow the stack
ADVICE = "save the tensors alone: torch.save(model.state_dict(), FILE)"


class _Storage(NamedTuple):
    """A row of numbers in the file."""

    kind: str
    key: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage. Offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
                    *_: object) -> _Tensor:
    """Stands for PyTorch's function of this name."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError("it describes a tensor that cannot be")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.count or 0 not in shape and last >= storage.count:
        raise UserError("it describes a tensor that is larger than its numbers")
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries, lists, numbers, texts and descriptions of tensors. Whatever else is asked for is refused."""

    storages: dict[str, _Storage]
    # No class of NumPy among these: a pickle may call __setstate__ of what it is given.
    ALLOWED = {"collections.OrderedDict": OrderedDict, "torch._utils._rebuild_tensor": _rebuild_tensor,
               "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
               "torch._utils._rebuild_parameter": lambda tensor, *_: tensor}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in TORCH_TYPES:
            return name
        if f"{module}.{name}" not in self.ALLOWED:
            raise UserError(f"it asks for `{module}.{name}`, which is refused: only tensors are read; {ADVICE}")
        return self.ALLOWED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _device, count, *_ = pid
        if word != "storage" or kind not in TORCH_TYPES or type(key) is not str or type(count) is not int:
            raise UserError("it describes a storage that cannot be")
        self.storages[key] = _Storage(kind, key, count)
        return self.storages[key]


def _unpickle(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The object of the pickle that begins here, and the storages it names; the file is then at its end."""
    start, tuples = file.tell(), 0
    for opcode, argument, position in pickletools.genops(file):
        # Python's table of objects is made as large as the largest index in the pickle.
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > position:
            raise UserError("its pickle asks for more memory than the file can need")
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MOST_TUPLES:
            raise UserError(f"its pickle has more than {MOST_TUPLES:,} tuples; {ADVICE}")
    file.seek(start)
    unpickler = _Unpickler(file, encoding="utf-8")
    unpickler.storages = {}
    return unpickler.load(), unpickler.storages


def _read_torch(path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            is_archive = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            tensors, others, contents, order = _read_archive(file) if is_archive else _read_legacy(file)
        arrays = {name: _array(tensor, contents, order) for name, tensor in tensors.items()}
    except Exception as error:  # the documentation of pickle has no complete list of what damaged bytes raise
        damage = "" if isinstance(error, UserError) else f"it is damaged, or was cut off: {type(error).__name__}: "
        raise UserError(f"{path}: cannot be read as a PyTorch file: {damage}{error}") from None
    return Contents(arrays, {}, others=others, kind=TORCH)


_Parts = tuple[dict[str, _Tensor], list[str], dict[str, bytes], str]  # tensors, other names, bytes, byte order


def _read_archive(file: BinaryIO) -> _Parts:
    """A zip archive of the pickle and a file for each storage; zipfile compares the checksums."""
    with zipfile.ZipFile(file) as archive:
        if sum(item.file_size for item in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise UserError("its archive claims to hold more bytes than the file has")
        pickled = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if pickled is None:
            raise UserError("it is a zip archive without data.pkl: PyTorch did not write it")
        folder = pickled.removesuffix("data.pkl")
        root, _ = _unpickle(io.BytesIO(archive.read(pickled)))
        tensors, others = _state_dict(root)
        contents = {key: archive.read(f"{folder}data/{key}") for key in {item.storage.key for item in tensors.values()}}
        is_big = f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big"
    return tensors, others, contents, ">" if is_big else "<"


def _read_legacy(file: BinaryIO) -> _Parts:
    """A mark, the version, the system, the object and the keys of the storages, all pickled; then the count and the
    bytes of each storage."""
    _, _, (system, _), (root, storages), (keys, _) = (_unpickle(file) for _ in range(5))
    contents = {}
    for key in keys:
        item_bytes = np.dtype(TORCH_TYPES[storages[key].kind]).itemsize
        contents[key] = file.read(int.from_bytes(file.read(8), "little") * item_bytes)
    tensors, others = _state_dict(root)
    return tensors, others, contents, "<" if system["little_endian"] else ">"


def _state_dict(root: Any) -> tuple[dict[str, _Tensor], list[str]]:
    """The tensors of a dictionary, or of one in it, and the names of the rest."""
    root = root if isinstance(root, dict) else {}
    if tensors := {str(key): value for key, value in root.items() if isinstance(value, _Tensor)}:
        return tensors, [str(key) for key in root if str(key) not in tensors]
    inner = [key for key, value in root.items() if isinstance(value, dict)
             and any(isinstance(item, _Tensor) for item in value.values())]
    chosen = next((key for key in STATE_DICT_KEYS if key in inner), inner[0] if len(inner) == 1 else None)
    if chosen is None:
        raise UserError(f"it holds no state dict; {ADVICE}")
    tensors, others = _state_dict(root[chosen])
    return tensors, others + [str(key) for key in root if key != chosen]


def _array(tensor: _Tensor, contents: Mapping[str, bytes], order: str) -> np.ndarray:
    storage = tensor.storage
    dtype = np.dtype(TORCH_TYPES[storage.kind]).newbyteorder(order)
    numbers = np.frombuffer(contents[storage.key], dtype, storage.count)[tensor.offset:]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
