"""Checkpoints of PyTorch, and other pickles, read without running anything that they hold.

A pickle is a program, and Python's unpickler executes it. Here an unpickler reads it to which all functions and classes
are inert: it makes an `InertObject` of those that trainers store, and any other name is an error. Then
`torch.load(weights_only=True)` reads the tensors, with the same stand-ins. Those in an archive of torch.save stay in
the file, which is mapped into memory; its older format and bare pickles are read into memory.
"""

import codecs
import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from onepeace.errors import UsageError, UserError, one_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
"""Pickles at the start of a file of torch.save's older format: mark, version, sizes of types, content, keys."""
_BUILTINS = (
    *("object", "int", "float", "str", "bool", "bytes", "list", "tuple", "dict", "set", "frozenset"),
    *("long", "unicode"),  # Python 2's names, which pickle protocol 2 uses
)
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
INERT = frozenset(
    [
        *(f"torch.{name}Storage" for name in _STORAGES),
        *(f"torch.{name}" for name in ("Size", "device", "float32", "float16", "bfloat16", "int64")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.ndarray", "numpy.dtype", "argparse.Namespace", "typing.Any"),
        *("pathlib.PosixPath", "pathlib.PurePosixPath", "datetime.timedelta"),
        "torch._utils._rebuild_parameter",
    ]
)
"""Names whose objects are read as inert records; trainers store their configuration in them."""
INERT_PACKAGES = ("omegaconf.", "fairseq.", "one_peace.")


class InertObject:
    """An object of any class: what it was made of."""

    name = ""
    """Full name of the class or function."""

    def __new__(cls, *args: Any) -> "InertObject":
        made = super().__new__(cls)
        made.args = args
        made.state = None
        return made

    args: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


@cache
def _stand_in(name: str) -> Callable[..., Any]:
    if name == "collections.defaultdict":
        return lambda *_: {}
    return type(name, (InertObject,), {"name": name})


class _Unpickler(pickle.Unpickler):
    """Unpickler to which every name is inert, but for dictionaries, bytes and, in a bare pickle, tensors."""

    def __init__(self, file: IO[bytes], path: Path, *, is_bare: bool) -> None:
        super().__init__(file, encoding="latin-1")
        self.path = path
        self.is_bare = is_bare
        self.names: set[str] = set()
        self.known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "_codecs.encode": codecs.encode,  # how protocol 2 encodes bytes
            "torch._utils._rebuild_tensor_v2": self.tensor,
        }
        if is_bare:
            self.known["torch.storage._load_from_bytes"] = self.load_from_bytes
            self.known["torch._utils._rebuild_parameter"] = _rebuild_parameter

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in self.known:
            return self.known[full_name]
        is_inert = full_name in INERT or full_name.startswith(INERT_PACKAGES) or full_name == "collections.defaultdict"
        if not is_inert:
            raise UserError(
                f"holds {full_name[:100]!r}, which is neither tensor nor plain value; nothing was run", where=self.path
            )
        self.names.add(full_name)
        return _stand_in(full_name)

    def persistent_load(self, key: Any) -> Any:
        """A tensor's numbers, which are elsewhere in the file."""
        return InertObject(key)

    def tensor(self, storage: Any, start: int, shape: Sequence[int], stride: Sequence[int], *rest: Any) -> Any:
        """A tensor of a bare pickle; torch would enlarge a storage that is too small for it, by any numbers."""
        size = storage.args[0][4] if isinstance(storage, InertObject) else storage._size()
        last = start + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        is_inside = 0 in shape or max(last + 1, math.prod(shape)) <= size
        if not is_inside or min((start, *shape, *stride)) < 0:
            raise ValueError(f"a tensor of shape {shape} is not in its storage of {size}")
        return _rebuild_tensor_v2(storage, start, shape, stride, *rest) if self.is_bare else InertObject()

    def load_from_bytes(self, content: bytes) -> Any:
        return _read(self.path, io.BytesIO(content))


def read_checkpoint(path: Path) -> Any:
    """The content of a file: containers, plain values, tensors, `InertObject`.

    UserError, which names the file, if it is not a checkpoint, is cut off, or contains an unknown name.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except UserError:
        raise
    except (IsADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UsageError(f"{error.strerror}; expected a checkpoint file (.pt, .pth, .pkl)", where=path) from error
    except Exception as error:  # of pickle, zipfile and torch, and whatever invalid instructions cause
        raise UserError(f"not a readable checkpoint, or cut off ({one_line(error)[:200]})", where=path) from error


def _read(path: Path, file: IO[bytes]) -> Any:
    """Read a file that was opened, or one inside a pickle."""
    if file.read(2) == b"PK":
        return _read_archive(path, file)
    file.seek(0)
    bare = _Unpickler(file, path, is_bare=True)
    content = bare.load()
    if content != LEGACY_MAGIC:
        return content
    names = set()
    for _ in range(LEGACY_PICKLES - 1):
        unpickler = _Unpickler(file, path, is_bare=False)
        unpickler.load()
        names |= unpickler.names
    file.seek(0)
    with torch.serialization.safe_globals(_stand_ins(names)):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_archive(path: Path, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UserError("a zip archive without a data.pkl; not a PyTorch checkpoint", where=path)
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError("its content is compressed; torch.save never does that", where=path)
        with archive.open(pickles[0]) as described:
            unpickler = _Unpickler(described, path, is_bare=False)
            unpickler.load()
    file.seek(0)
    is_file = not isinstance(file, io.BytesIO)
    with torch.serialization.safe_globals(_stand_ins(unpickler.names)):
        return torch.load(path if is_file else file, map_location="cpu", weights_only=True, mmap=is_file)


def _stand_ins(names: set[str]) -> list[Any]:
    """What torch.load takes for names, Python 2's among them, which it renames."""
    return [(_stand_in(name), name) for name in (INERT | names)]


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
