"""Checkpoint files are read without running them; what is no checkpoint is one line."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from support.hub_layouts import (
    bare_pickle,
    old_trainer_file,
    released,
    saved,
    wrapper,
)

from onepeace.errors import UserError
from onepeace.hub.convert import unpickle
from onepeace.hub.convert.original import read_original
from onepeace.hub.convert.unpickle import StoredTensor, plain, read_checkpoint


class Payload:
    """Unpickled by Python, it calls `function(*args)`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Stateful:
    """Unpickled by Python, it runs its own __setstate__."""

    def __getstate__(self):
        return {"marker": 1}


def hostile(marker: Path) -> dict[str, object]:
    """Objects that create the file `marker` when Python unpickles them, in places a checkpoint has."""
    shell = Payload(os.system, f"touch {marker}")
    written = Payload(eval, f"open({str(marker)!r}, 'w').close()")
    opened = Payload(io.open, str(marker), "w")
    return {
        "at the top": shell,
        "eval": {"model": {}, "cfg": written},
        "exec": {"model": {}, "cfg": Payload(exec, f"open({str(marker)!r}, 'w').close()")},
        "as a weight": {"model": {"w": shell}},
        "inside containers": {"cfg": {"a": [1, ({"b": [shell]},)]}, "model": {}},
        "in a default dictionary": {"model": collections.defaultdict(list, {"a": opened})},
        "as a dictionary's content": {"model": collections.OrderedDict([("w", opened)])},
        "getattr chain": {"model": Payload(getattr, Payload(__import__, "os"), "system")},
        "own class": {"model": Stateful()},
        "hidden behind a tensor": {"model": {"w": torch.zeros(2)}, "extra_state": [shell]},
    }


KINDS = list(hostile(Path("x")))
FORMATS = ("zip", "legacy", "pickle")


def write(path: Path, content: object, layout: str, protocol: int = 4) -> Path:
    if layout == "pickle":
        return bare_pickle(path, content, protocol)
    path.write_bytes(saved(content, _use_new_zipfile_serialization=layout == "zip"))
    return path


def one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> str:
    text = str(error.value)
    assert text.count("\n") == 0
    assert str(path) in text
    assert len(text) < 400 + len(str(path))
    return text


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_pickle_code_never_runs(tmp_path, kind, layout):
    marker = tmp_path / "marker"
    path = write(tmp_path / "x.pt", hostile(marker)[kind], layout)

    with pytest.raises(UserError) as error:
        read_checkpoint(path)

    assert "nothing was run" in one_line(error, path)
    assert not marker.exists()


def test_the_payloads_are_alive(tmp_path):
    # Without this the test above could pass because the payloads do nothing.
    for number, kind in enumerate(("at the top", "eval", "inside containers", "as a dictionary's content")):
        marker = tmp_path / str(number)
        pickle.loads(pickle.dumps(hostile(marker)[kind]))  # noqa: S301
        assert marker.exists()


def test_code_inside_an_embedded_tensor_never_runs(tmp_path):
    marker = tmp_path / "marker"
    inner = saved(hostile(marker)["at the top"], _use_new_zipfile_serialization=False)
    path = bare_pickle(tmp_path / "x.pkl", {"model": {"w": Payload(torch.storage._load_from_bytes, inner)}})

    with pytest.raises(UserError, match="nothing was run"):
        read_checkpoint(path)

    assert not marker.exists()


def test_sharing_and_cycles_take_no_time(tmp_path):
    doubled: list = [1]
    for _ in range(200):
        doubled = [doubled, doubled]
    loop: dict = {}
    loop["self"] = loop
    path = bare_pickle(tmp_path / "x.pkl", {"cfg": {"doubled": doubled, "loop": loop}})

    assert set(plain(read_checkpoint(path)["cfg"])) == {"doubled", "loop"}


def test_embedded_file_mentioned_often_is_followed_once(tmp_path, monkeypatch):
    inner = saved(torch.ones(2), _use_new_zipfile_serialization=False)
    content = {"model": {f"w{i}": Payload(torch.storage._load_from_bytes, inner) for i in range(50)}}
    path = bare_pickle(tmp_path / "x.pkl", content)
    followed, legacy = [], unpickle._Reader.legacy
    monkeypatch.setattr(unpickle._Reader, "legacy", lambda self, at: followed.append(at) or legacy(self, at))

    assert len(read_checkpoint(path)["model"]) == 50
    assert len(followed) == 1


FOREIGN = {
    "empty": b"",
    "jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "xz": b"\xfd7zXZ\x00" + bytes(50),
    "text pickle": b"cos\nsystem\n(S'true'\ntR.",
    "one byte": b"\x80",
    "noise": b"PK\x03\x04" + os.urandom(200),
    "safetensors": struct.pack("<Q", 2) + b"{}",
}


NONSENSE = [
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.",  # a tensor of numbers
    b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    b"\x80\x04\x82\x01.",  # the extension registry
    b"\x80\x02cargparse\nNamespace\n(K\x01i__main__\nA\n.",
    b"\x80\x02K\x01K\x02\x86}K\x03s.",
    b"\x80\x02}(K\x01\x85K\x02u.",  # a tuple as a key
    b"\x80\x02R.",
    b"\x80\x02.",
    b"\x80\x02h\x07.",
    b"\x80\x02t.",
    b"\x80\x02K\x01K\x02s.",
    b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",  # bytes longer than any memory
    b"\x80\x02K\x01Q.",
]
"""Programs that a pickle may not be."""


@pytest.mark.parametrize("content", [*FOREIGN.values(), *NONSENSE], ids=[*FOREIGN, *map(str, range(len(NONSENSE)))])
def test_foreign_files_are_one_line(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)

    with pytest.raises(UserError) as error:
        read_original(path)

    one_line(error, path)


def test_other_zip_files_are_one_line(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"without a data\.pkl"):
        read_checkpoint(path)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("layout", FORMATS)
def test_file_cut_anywhere_is_one_line(tmp_path, layout):
    path = write(tmp_path / "x.pt", {"model": {f"w{i}": torch.rand(50) for i in range(6)}}, layout)
    whole = path.read_bytes()
    assert len(whole) > 1500

    for length in range(1, len(whole), len(whole) // 23):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            read_original(path)
        one_line(error, path)


def test_tensor_beyond_its_storage_is_an_error(tmp_path):
    data = torch.arange(4.0)
    storage = data.untyped_storage()
    for numbers in ((0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (0, (10**9,), (0,)),
                    (0, (2,), (-1,)), (0, (2, 2), (1,))):  # fmt: skip
        args = (
            torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True),
            *numbers,
            False,
            {},
        )
        path = bare_pickle(tmp_path / "x.pkl", {"model": {"w": Payload(torch._utils._rebuild_tensor_v2, *args)}})
        with pytest.raises(UserError, match="tensor"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("layout", "protocol"), [("zip", 2), ("legacy", 2), ("pickle", 3), ("pickle", 4), ("pickle", 5)]
)
def test_tensors_are_what_torch_reads(tmp_path, layout, protocol):
    base = torch.randn(6)
    tensors = {
        **{str(dtype): (torch.randn(3, 4) * 9).to(dtype) for dtype in (torch.float32, torch.float64, torch.float16,
           torch.bfloat16, torch.int64, torch.int32, torch.uint8)},
        "transposed": torch.randn(3, 4).t(),
        "part of a storage": base[2:5],
        "same storage": base[::2],
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "truth": torch.tensor([True, False]),
    }  # fmt: skip
    path = write(tmp_path / "x.pt", {"model": collections.OrderedDict(tensors)}, layout, protocol)

    found = read_checkpoint(path)["model"]

    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert isinstance(found[name], StoredTensor)
        result = found[name].read()
        assert result.dtype == tensor.dtype
        assert result.is_contiguous()
        assert torch.equal(result, tensor.detach()), name


def test_trainer_configuration_of_any_kind_becomes_plain(tmp_path, monkeypatch):
    package, module = types.ModuleType("omegaconf"), types.ModuleType("omegaconf.dictconfig")
    monkeypatch.setitem(sys.modules, "omegaconf", package)
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    for name in ("DictConfig", "ListConfig", "AnyNode"):
        setattr(module, name, type(name, (), {"__module__": "omegaconf.dictconfig"}))

    def node(kind: str, **state):
        result = getattr(module, kind)()
        result.__dict__.update(state, _parent=None, _metadata={"ref_type": int})
        return result

    layers = node("AnyNode", _val=40)
    bounds = node("ListConfig", _content=[node("AnyNode", _val=0.9), node("AnyNode", _val=0.98)])
    settings = node("DictConfig", _content={"layers": layers, "betas": bounds, "lr": None})
    layers._parent = settings
    torch.save(wrapper(released(), settings), tmp_path / "a.pt")
    old_trainer_file(tmp_path / "b.pt", released())

    assert read_original(tmp_path / "a.pt")[0] == {"layers": 40, "betas": [0.9, 0.98], "lr": None}
    assert read_original(tmp_path / "b.pt")[0] == {"arch": "one_peace", "task": "x"}


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {"model": {"w": 1}}, {"model": {"w": torch.ones(1), "x": "y"}}, 7]
)
def test_files_without_weights_say_what_they_hold(tmp_path, content):
    path = write(tmp_path / "x.pt", content, "zip")

    with pytest.raises(UserError, match=r"holds|not tensors"):
        read_original(path)
