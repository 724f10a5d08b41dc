"""Checkpoints of PyTorch, and other pickles, read without running anything that they hold.

A pickle is a program, and Python's unpickler executes it. Here `torch.load(weights_only=True)` reads what torch.save
wrote, whose numbers stay in the file, which is mapped into memory; an unpickler that knows tensors reads bare pickles.
To both the classes that trainers store are inert (`InertObject`), and any other name is an error.
"""

import codecs
import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from onepeace.errors import UsageError, UserError, one_line

OLD_MARK = 0x1950A86A20F9469CFC6C
"""The first object in a file of torch.save before torch 1.6, which was no archive."""
BUILTINS = (
    *("object", "int", "float", "str", "bool", "bytes", "list", "tuple", "dict", "set", "frozenset"),
    *("long", "unicode"),  # Python 2's names, which pickle protocol 2 uses
)
INERT = frozenset(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in BUILTINS)
INERT_PACKAGES = (
    *("omegaconf.", "fairseq.", "one_peace."),
    *("argparse.", "collections.", "datetime.", "numpy.", "pathlib.", "typing."),
)
"""Names whose objects are read as inert records; trainers store their configuration in them."""


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


def _inert(name: str) -> Callable[..., Any]:
    """Stand-in for a class or function of a trainer; UserError for any other."""
    if name not in INERT and not name.startswith(INERT_PACKAGES):
        raise UserError(f"it holds {name[:100]!r}, which is neither tensor nor plain value")
    return _stand_in(name)


@cache
def _stand_in(name: str) -> Callable[..., Any]:
    if name == "collections.defaultdict":
        return lambda *_: {}
    return type(name, (InertObject,), {"name": name})


def _tensor(storage: Any, *place: Any) -> torch.Tensor:
    """A tensor in a storage; ValueError if it is larger, as torch would enlarge the storage by any numbers."""
    size = storage._size()
    tensor = _rebuild_tensor_v2(storage, *place)
    if storage._size() > size:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is longer than its storage")
    return tensor


def _embedded(content: bytes) -> Any:
    """Numbers of a tensor, which torch.save wrote into a bare pickle."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    """Unpickler to which every name is inert, but for dictionaries, bytes and tensors."""

    known: dict[str, Callable[..., Any]] = {  # noqa: RUF012
        "collections.OrderedDict": collections.OrderedDict,
        "_codecs.encode": codecs.encode,  # how protocol 2 encodes bytes
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch.storage._load_from_bytes": _embedded,
    }

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        return self.known.get(full_name) or _inert(full_name)


def read_checkpoint(path: Path) -> Any:
    """The content of a file: containers, plain values, tensors, `InertObject`.

    UserError, which names the file, if it is not a checkpoint, is cut off, or contains an unknown name.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":
                return _read_archive(path)
            file.seek(0)
            content = _Unpickler(file, encoding="latin-1").load()
        return torch.load(path, map_location="cpu", weights_only=True) if content == OLD_MARK else content
    except (IsADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UsageError(f"{error.strerror}; expected a checkpoint file (.pt, .pth, .pkl)", where=path) from error
    except Exception as error:  # of pickle, zipfile and torch, and whatever invalid instructions cause
        raise UserError(
            f"not a readable checkpoint, or cut off; nothing was run ({one_line(error)[:200]})", where=path
        ) from error


def _read_archive(path: Path) -> Any:
    """The content of an archive of torch.save."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError("its content is compressed; torch.save never does that")
    stand_ins: list[Any] = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        stand_ins.append((_inert(name), name))
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


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
