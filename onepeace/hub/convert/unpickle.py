"""Reader for PyTorch checkpoints that never executes code from them.

A pickle is a program, and Python's unpickler executes it. Here the standard library's `pickletools` lists the
instructions without executing them, and a small interpreter that supports plain values, containers and tensors follows
them. It imports no names: known functions are replaced by ours, known classes by `InertObject`s, and any other name
is an error. Tensors stay on disk until they are read, so a file of 16 GB costs no memory.

Three layouts are supported: the zip archive of torch.save, its older format, and a bare pickle with embedded tensors.
`torch.load(weights_only=True)` is not used because it refuses the configuration objects of old trainer files, cannot
map the two older layouts, and counts every page it maps as used memory.
"""

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from onepeace.errors import UsageError, UserError, one_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_BUILTINS = (
    *("object", "int", "float", "str", "bool", "bytes", "list", "tuple", "dict", "set", "frozenset"),
    *("long", "unicode"),  # Python 2's names, which pickle protocol 2 uses
)
# Classes whose objects are read as inert records; trainers store their configuration in them.
INERT = frozenset(
    [
        *STORAGE_DTYPES,
        *(f"torch.{name}" for name in ("Size", "device", "float32", "float16", "bfloat16", "int64")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.ndarray", "numpy.dtype", "copyreg._reconstructor", "copy_reg._reconstructor"),
        *("argparse.Namespace", "collections.defaultdict", "typing.Any"),
        *("pathlib.PosixPath", "pathlib.PurePosixPath", "datetime.timedelta"),
    ]
)
INERT_PACKAGES = ("omegaconf.", "fairseq.", "one_peace.")
FUNCTIONS = frozenset(
    [
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
        "_codecs.encode",
    ]
)
_LENGTH_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Sets become lists: no checkpoint needs sets, and hashing the items of a hostile one can take arbitrarily long.
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_ADDED = {"SETITEM": 2, "APPEND": 1, "SETITEMS": None, "APPENDS": None, "ADDITEMS": None}
"""Number of operands; None = all since the last mark."""


@dataclass
class Storage:
    """A block of `size` numbers in the file; `offset` (bytes) is -1 until its position has been read."""

    dtype: torch.dtype
    size: int
    offset: int = -1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, loaded by `read`."""

    path: Path
    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self) -> Tensor:
        """Load the tensor into new, contiguous memory."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        # Only the numbers between the tensor's first and last are read, not the whole storage.
        span = 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.empty(span, dtype=self.dtype)
        with open(self.path, "rb") as file:
            file.seek(self.storage.offset + self.start * self.dtype.itemsize)
            if file.readinto(numbers.view(torch.uint8).numpy().data) != numbers.nbytes:
                raise UserError("the file ended inside a tensor; it was cut off while reading", where=self.path)
        return numbers.as_strided(self.shape, self.stride).contiguous()

    def check(self, file_size: int) -> None:
        """Raise ValueError unless the tensor is inside its storage and the file."""
        if self.storage.offset < 0:
            raise ValueError("a tensor has no data")
        if len(self.shape) != len(self.stride) or min(self.shape + self.stride + (self.start,), default=0) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and stride {self.stride}")
        last = self.start + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        end = self.storage.offset + self.storage.size * self.dtype.itemsize
        if 0 not in self.shape and max(last + 1, math.prod(self.shape)) > self.storage.size:
            raise ValueError(f"a tensor of shape {self.shape} is larger than its storage of {self.storage.size}")
        if end > file_size:
            raise ValueError(f"tensor data should reach byte {end}, the file has {file_size}; it is cut off")


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names."""

    path: str


@dataclass(frozen=True)
class Bytes:
    """Unread bytes of the file, from ``start`` on."""

    start: int


@dataclass(eq=False)
class InertObject:
    """An object of an inert class: its constructor arguments and its state; items added to it are dropped."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint or another pickle: containers, plain values, `StoredTensor`, `InertObject`.

    UserError, which names the file, if it is not a checkpoint, is cut off, or contains an unknown name.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except (IsADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UsageError(f"{error.strerror}; expected a checkpoint file (.pt, .pth, .pkl)", where=path) from error
    except zipfile.BadZipFile as error:
        raise UserError(f"damaged or cut off ({one_line(error)[:200]}); download it again", where=path) from error
    except (
        # Errors that invalid instructions cause: few of them are checked beforehand.
        ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError,
        struct.error, OSError,
    ) as error:  # fmt: skip
        raise UserError(f"not a readable checkpoint, or cut off ({one_line(error)[:200]})", where=path) from error


def plain(value: Any) -> Any:
    """Convert records of argparse and omegaconf to plain values, others to their only plain argument or None."""
    return _plain(value, {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    # Each object is converted once: a small pickle can contain one list a million times, or inside itself.
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = None
    if isinstance(value, dict):
        result: Any = {key: _plain(item, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [_plain(item, done) for item in value]
    elif isinstance(value, InertObject):
        state = value.state if isinstance(value.state, dict) else {}
        if value.name.startswith("omegaconf."):
            result = _plain(state.get("_content", state.get("_val")), done)
        elif value.name == "argparse.Namespace":
            result = _plain(state, done)
        else:  # an enumeration or a path: its argument is the value
            result = value.args[0] if len(value.args) == 1 and isinstance(value.args[0], str | int) else None
    else:
        result = value
    done[id(value)] = result
    return result


def _read(path: Path, file: BinaryIO) -> Any:
    head = file.read(2)
    size = file.seek(0, 2)
    file.seek(0)
    reader = _Reader(path, file, _zip_storages(path, file) if head == b"PK" else {})
    content = reader.value()
    if content == LEGACY_MAGIC:
        content = reader.legacy(0)
    for tensor in reader.tensors:
        tensor.check(size)
    return content


def _zip_storages(path: Path, file: BinaryIO) -> dict[str, int]:
    """Byte offsets of the storages of an archive; moves the file to the start of the pickle."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UserError("a zip archive without a data.pkl; not a PyTorch checkpoint", where=path)
        root = pickles[0].removesuffix("data.pkl")
        offsets = {}
        for name, info in members.items():
            if name.startswith(f"{root}data"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{name} is compressed; torch.save never does that", where=path)
                file.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                offsets[name.removeprefix(root)] = info.header_offset + 30 + name_length + extra_length
    file.seek(offsets["data.pkl"])
    return {name.removeprefix("data/"): offset for name, offset in offsets.items()}


def _add(container: Any, items: list[Any]) -> None:
    if isinstance(container, dict):
        keys = items[::2]
        # Plain keys only: hashing the nested tuples of a hostile file can take arbitrarily long.
        if not all(isinstance(key, str | int | float | None) for key in keys):
            raise ValueError("a dictionary key is not a plain value")
        container.update(zip(keys, items[1::2], strict=True))
    elif isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, InertObject):
        raise ValueError(f"nothing can be added to a {type(container).__name__}")


class _Reader:
    """Interpreter for the pickles of one file. `offsets`: start of each storage in an archive, {} for other layouts."""

    def __init__(self, path: Path, file: BinaryIO, offsets: dict[str, int]) -> None:
        self.path = path
        self.file = file
        self.offsets = offsets
        self.storages: dict[str, Storage] = {}
        self.tensors: list[StoredTensor] = []
        self.embedded: dict[int, Any] = {}

    def legacy(self, at: int) -> Any:
        """Read the object in torch.save's older layout at byte `at`: four pickles, the keys, then the numbers."""
        back = self.file.tell()
        self.file.seek(at)
        outer, self.storages = self.storages, {}
        if self.value() != LEGACY_MAGIC:
            raise ValueError("torch.save's mark is missing")
        self.value()  # version of the layout
        self.value()  # byte order and sizes of types
        content = self.value()
        for key in self.value():
            storage = self.storages[key]
            (size,) = struct.unpack("<q", self.file.read(8))
            if size != storage.size:
                raise ValueError(f"a storage has {size} numbers, not {storage.size} as announced")
            storage.offset = self.file.tell()
            self.file.seek(size * storage.dtype.itemsize, 1)
        self.storages = outer
        self.file.seek(back)
        return content

    def value(self) -> Any:
        """Interpret one pickle, from the current position of the file to its end."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def pop(count: int | None = None) -> list[Any]:
            """Pop the last items of the stack; without a count, those after the last mark."""
            start = marks.pop() if count is None else len(stack) - count
            if not 0 <= start <= len(stack):
                raise ValueError("an instruction lacks its operands")
            items = stack[start:]
            del stack[start:]
            return items

        argument: Any
        position: Any
        for opcode, argument, position in pickletools.genops(self.file):
            name = opcode.name
            if name in _PUSH:
                stack.append(argument)
            elif name in _LENGTH_BYTES:
                stack.append(Bytes(position + 1 + _LENGTH_BYTES[name]))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                stack.append(tuple(pop(_TUPLES[name])))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("LIST", "FROZENSET"):
                stack.append(pop())
            elif name == "DICT":
                items = pop()
                stack.append({})
                _add(stack[-1], items)
            elif name in _ADDED:
                items = pop(_ADDED[name])
                _add(stack[-1], items)
            elif name == "GLOBAL":
                stack.append(self.name(*argument.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                stack.append(self.name(*pop(2)))
            elif name in ("REDUCE", "NEWOBJ"):
                stack.append(self.call(*pop(2)))
            elif name == "NEWOBJ_EX":
                function, args, _ = pop(3)
                stack.append(self.call(function, args))
            elif name == "BUILD":
                (state,) = pop(1)
                if isinstance(stack[-1], InertObject):  # others: attributes of dictionaries and tensors, not needed
                    stack[-1].state = state
            elif name == "BINPERSID":
                stack.append(self.stored(*pop(1)))
            elif name == "POP":
                pop(1)
            elif name == "STOP":
                (result,) = pop(1)
                return result
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"instruction {name} is not for checkpoints")
        raise ValueError("no end mark")

    def name(self, module: Any, attribute: Any) -> Name:
        path = f"{module}.{attribute}"
        if path not in INERT and path not in FUNCTIONS and not path.startswith(INERT_PACKAGES):
            raise UserError(
                f"holds {path[:100]!r}, which is neither tensor nor plain value; nothing was run", where=self.path
            )
        return Name(path)

    def stored(self, key: Any) -> Storage:
        kind, dtype, name, _, size = key[:5]
        if kind != "storage" or not isinstance(dtype, Name) or not isinstance(size, int) or size < 0:
            raise ValueError(f"unknown kind of data {kind!r}")
        storage = Storage(STORAGE_DTYPES[dtype.path], size, self.offsets[name] if self.offsets else -1)
        return self.storages.setdefault(name, storage)

    def call(self, function: Name, args: tuple[Any, ...]) -> Any:
        path = function.path
        if path in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            storage, start, shape, stride = args[:4]
            if not isinstance(storage, Storage) or not all(type(number) is int for number in (start, *shape, *stride)):
                raise ValueError("a tensor is described wrongly")
            self.tensors.append(StoredTensor(self.path, storage, start, tuple(shape), tuple(stride)))
            return self.tensors[-1]
        if path == "torch._utils._rebuild_parameter":
            return args[0]
        if path == "torch.storage._load_from_bytes":
            if not isinstance(args[0], Bytes):
                raise ValueError("tensors inside a pickle of protocol 2 are not supported")
            # Once per position: a hostile file can refer to one position a million times.
            start = args[0].start
            if start not in self.embedded:
                self.embedded[start] = self.legacy(start)
            return self.embedded[start]
        if path == "collections.OrderedDict":
            ordered: dict[Any, Any] = {}
            _add(ordered, [part for pair in (args[0] if args else ()) for part in pair])
            return ordered
        if path == "_codecs.encode":  # how protocol 2 encodes bytes
            text, encoding = args
            return text.encode({"latin1": "latin-1"}[encoding])
        if path.endswith("._reconstructor"):
            return InertObject(args[0].path)
        return InertObject(path, args)
