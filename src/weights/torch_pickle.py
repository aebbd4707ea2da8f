# SPDX-License-Identifier: Apache-2.0
"""The pickle inside a PyTorch file, interpreted by a machine that knows dictionaries, lists, numbers, texts, tensors.

Whatever else a pickle asks for, such as a class or a function, is refused by name and never looked up.
"""

import math
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # NumPy has no such type: these are the upper halves of float32 values
LONGEST_LINE = 4096  # bytes of a name or number that is written as text
ADVICE = "save the tensors alone: torch.save(model.state_dict(), FILE)"

STORAGE_TYPES: dict[str, np.dtype] = {
    "Float": np.dtype("<f4"), "Half": np.dtype("<f2"), "BFloat16": BFLOAT16, "Double": np.dtype("<f8"),
    "Long": np.dtype("<i8"), "Int": np.dtype("<i4"), "Short": np.dtype("<i2"), "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"), "Bool": np.dtype("?")}


class TorchFileError(Exception):
    """What is wrong with a file, or what in it is refused; the caller names the file."""


class Storage(NamedTuple):
    """A run of numbers in the file."""

    dtype: np.dtype
    key: str
    count: int


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _mapping(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """A dictionary of plain keys: hashing a nested one could be made to exhaust the stack."""
    found = {}
    for key, value in pairs:
        if not isinstance(key, (str, int, float, type(None))):
            raise TorchFileError("its pickle has a dictionary whose keys are no names")
        found[key] = value
    return found


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or not all(
            type(number) is int and number >= 0 for number in numbers):
        raise TorchFileError("it describes a tensor that cannot be")
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (offset + last >= storage.count or math.prod(shape) > storage.count):
        raise TorchFileError("it describes a tensor that is larger than its numbers")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


CALLABLES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def _known_global(name: str) -> Callable[..., Any] | np.dtype:
    """What stands in for a global name; TorchFileError for all but the few that tensors need."""
    module, _, last = name.rpartition(".")
    kind = last.removesuffix("Storage")
    if module in ("torch", "torch.cuda") and last != kind and kind in STORAGE_TYPES:
        return STORAGE_TYPES[kind]
    if name not in CALLABLES:
        raise TorchFileError(f"it asks for `{name}`, which is refused: only tensors are read; {ADVICE}")
    return CALLABLES[name]


_MARK = object()
PUSH_ARGUMENT = frozenset((
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES",
    "SHORT_BINBYTES"))
PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: _MARK,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
NOTHING_TO_DO = frozenset(("PROTO", "FRAME"))


class _Machine:
    """Runs the opcodes of one pickle; `storages` are those that it names."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in PUSH_ARGUMENT:
            self.stack.append(argument)
        elif opcode in PUSH_NEW:
            self.stack.append(PUSH_NEW[opcode]())
        elif opcode in self.OTHERS:
            self.OTHERS[opcode](self, argument)
        elif opcode not in NOTHING_TO_DO:
            raise TorchFileError(f"its pickle has the opcode {opcode}, which is refused: only tensors are read; "
                                 f"{ADVICE}")

    def _take(self, count: int) -> list[Any]:
        """The last items of the stack, off it."""
        items = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return items

    def _since_mark(self) -> list[Any]:
        count = next(count for count in range(len(self.stack)) if self.stack[-1 - count] is _MARK)
        items = self._take(count)
        self.stack.pop()
        return items

    def _put(self, argument: int | None) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TorchFileError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise TorchFileError("its pickle sets items of what is no dictionary")
        self.stack[-1].update(_mapping(zip(items[::2], items[1::2], strict=True)))

    def _global(self, name: str) -> None:
        self.stack.append(_known_global(name))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._take(2)
        if not any(function is known for known in CALLABLES.values()) or not isinstance(arguments, tuple):
            raise TorchFileError("its pickle calls what is no function")
        self.stack.append(function(*arguments))

    def _build(self, _: Any) -> None:
        """Attributes of a state dict, such as the versions of its modules, are left out."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise TorchFileError("its pickle sets attributes of what is no dictionary")

    def _storage(self, _: Any) -> None:
        word, dtype, key, _location, count, *view = self.stack.pop()
        known = isinstance(dtype, np.dtype) and isinstance(key, str) and type(count) is int
        if word != "storage" or not known or view not in ([], [None]):
            raise TorchFileError("it describes a tensor that cannot be")
        self.storages[key] = Storage(dtype, key, count)
        self.stack.append(self.storages[key])

    OTHERS: dict[str, Callable[["_Machine", Any], None]] = {
        **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _put),
        **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), lambda self, index: self.stack.append(self.memo[index])),
        "TUPLE1": lambda self, _: self.stack.append(tuple(self._take(1))),
        "TUPLE2": lambda self, _: self.stack.append(tuple(self._take(2))),
        "TUPLE3": lambda self, _: self.stack.append(tuple(self._take(3))),
        "TUPLE": lambda self, _: self.stack.append(tuple(self._since_mark())),
        "LIST": lambda self, _: self.stack.append(self._since_mark()),
        "APPEND": lambda self, _: self._extend(self._take(1)),
        "APPENDS": lambda self, _: self._extend(self._since_mark()),
        "SETITEM": lambda self, _: self._set(self._take(2)),
        "SETITEMS": lambda self, _: self._set(self._since_mark()),
        "GLOBAL": lambda self, name: self._global(name.replace(" ", ".")),
        "STACK_GLOBAL": lambda self, _: self._global(".".join(self._take(2))),
        "REDUCE": _reduce,
        "BUILD": _build,
        "BINPERSID": _storage,
    }


class Bytes:
    """A file of bytes that lie in memory. What a damaged length asks for is never more than is there."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        content = bytes(self._data[self._at:self._at + count])
        self._at += len(content)
        return content

    def readline(self) -> bytes:
        line = bytes(self._data[self._at:self._at + LONGEST_LINE])
        line = line[:line.find(b"\n") + 1] or line
        self._at += len(line)
        return line


def run_pickle(file: Bytes) -> tuple[Any, dict[str, Storage]]:
    """The object of the pickle that begins here, and the storages it names; the file then stands behind it.

    TorchFileError says what is refused or damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.step(opcode.name, argument)
    except (ValueError, TypeError, IndexError, KeyError, StopIteration, RuntimeError):  # of bytes that make no sense
        pass
    raise TorchFileError("its pickle is damaged")
