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
from support.hub_layouts import bare_pickle, released, saved, wrapper

from onepeace.errors import UserError
from onepeace.hub.convert.original import read_original
from onepeace.hub.convert.unpickle import plain, read_checkpoint


class Payload:
    """Unpickled by Python, it calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


class Stateful:
    """Unpickled by Python, it runs its own __setstate__."""

    def __getstate__(self):
        return {"marker": 1}


def hostile(marker: Path) -> dict[str, object]:
    """Objects that create the file `marker` when Python unpickles them, in places a checkpoint has."""
    shell = Payload(os.system, f"touch {marker}")
    opened = Payload(io.open, str(marker), "w")
    program = f"open({str(marker)!r}, 'w').close()"
    return {
        "at the top": shell,
        "eval": {"model": {}, "cfg": Payload(eval, program)},
        "as a dictionary's content": {"model": collections.OrderedDict([("w", opened)])},
        "getattr chain": {"model": Payload(getattr, Payload(__import__, "os"), "system")},
        "own class": {"model": Stateful()},
        "hidden behind a tensor": {"model": {"w": torch.zeros(2)}, "extra_state": [shell]},
    }


HIDING_PLACES = list(hostile(Path("x")))
FORMATS = ("zip", "legacy", "pickle")


def write(path: Path, content: object, layout: str, protocol: int = 4) -> Path:
    if layout == "pickle":
        return bare_pickle(path, content, protocol)
    path.write_bytes(saved(content, _use_new_zipfile_serialization=layout == "zip"))
    return path


def check_one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_pickle_code_never_runs(tmp_path, place, layout):
    marker = tmp_path / "marker"
    path = write(tmp_path / "x.pt", hostile(marker)[place], layout)

    with pytest.raises(UserError, match="nothing was run") as error:
        read_checkpoint(path)

    check_one_line(error, path)
    assert not marker.exists()


@pytest.mark.parametrize("place", ["at the top", "eval", "as a dictionary's content"])
def test_payloads_are_alive(tmp_path, place):
    """Without this the test above could pass because the payloads do nothing."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(hostile(marker)[place]))  # noqa: S301
    assert marker.exists()


def embedded(content: object) -> Payload:
    """A torch.save file inside a pickle."""
    return Payload(torch.storage._load_from_bytes, saved(content, _use_new_zipfile_serialization=False))


def test_code_inside_an_embedded_tensor_never_runs(tmp_path):
    marker = tmp_path / "marker"
    tensor = embedded(hostile(marker)["at the top"])
    path = bare_pickle(tmp_path / "x.pkl", {"model": {"w": tensor}})

    with pytest.raises(UserError, match="nothing was run"):
        read_checkpoint(path)

    assert not marker.exists()


def test_sharing_and_cycles_are_read_once(tmp_path):
    doubled: list = [1]
    for _ in range(200):
        doubled = [doubled, doubled]
    loop: dict = {}
    loop["self"] = loop
    path = bare_pickle(tmp_path / "x.pkl", {"cfg": {"doubled": doubled, "loop": loop}})

    assert set(plain(read_checkpoint(path)["cfg"])) == {"doubled", "loop"}


FOREIGN = {
    "empty": b"",
    "jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
    "text pickle": b"cos\nsystem\n(S'true'\ntR.",
    "noise": b"PK\x03\x04" + os.urandom(200),
    "tensor of numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.",
    "dictionary of a number": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "bytes longer than any memory": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_is_one_line(tmp_path, name):
    path = tmp_path / "x.pt"
    path.write_bytes(FOREIGN[name])

    with pytest.raises(UserError) as error:
        read_original(path)

    check_one_line(error, path)


@pytest.mark.parametrize(
    ("member", "compression"),
    [
        ("readme.txt", zipfile.ZIP_STORED),
        ("a/data.pkl", zipfile.ZIP_DEFLATED),  # torch would take compressed numbers for numbers
    ],
)
def test_other_zip_file_is_refused(tmp_path, member, compression):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(member, pickle.dumps({}))

    with pytest.raises(UserError):
        read_checkpoint(path)


@pytest.mark.parametrize("layout", FORMATS)
def test_file_cut_anywhere_is_one_line(tmp_path, layout):
    tensors = {f"w{number}": torch.rand(50) for number in range(6)}
    path = write(tmp_path / "x.pt", {"model": tensors}, layout)
    content = path.read_bytes()
    assert len(content) > 1500

    for length in range(1, len(content), len(content) // 23):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            read_original(path)
        check_one_line(error, path)


@pytest.mark.parametrize(
    ("start", "shape", "stride"),
    [
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
    ],
)
def test_tensor_beyond_its_storage_is_an_error(tmp_path, start, shape, stride):
    storage = torch.arange(4.0)._typed_storage()
    tensor = Payload(torch._utils._rebuild_tensor_v2, storage, start, shape, stride, False, {})
    path = bare_pickle(tmp_path / "x.pkl", {"model": {"w": tensor}})

    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_original(path)


DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
)


@pytest.mark.parametrize(
    ("layout", "protocol"),
    [
        ("zip", 2),
        ("legacy", 2),
        ("pickle", 3),
        ("pickle", 4),
        ("pickle", 5),
    ],
)
def test_tensors_are_what_torch_reads(tmp_path, layout, protocol):
    base = torch.randn(6)
    numbers = 9 * torch.randn(3, 4)
    tensors = {
        **{str(dtype): numbers.to(dtype) for dtype in DTYPES},
        "transposed": torch.randn(3, 4).t(),
        "part of a storage": base[2:5],
        "same storage": base[::2],
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "truth": torch.tensor([True, False]),
    }
    path = write(tmp_path / "x.pt", {"model": collections.OrderedDict(tensors)}, layout, protocol)

    stored_tensors = read_checkpoint(path)["model"]

    assert list(stored_tensors) == list(tensors)
    for name, stored in stored_tensors.items():
        assert stored.dtype == tensors[name].dtype
        assert torch.equal(stored, tensors[name]), name


@pytest.fixture
def omegaconf(monkeypatch):
    """As much of omegaconf as its files name."""
    module = types.ModuleType("omegaconf.dictconfig")
    for name in ("DictConfig", "ListConfig", "AnyNode"):
        setattr(module, name, type(name, (), {"__module__": "omegaconf.dictconfig"}))
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    return module


def test_trainer_configuration_of_omegaconf_becomes_plain(tmp_path, omegaconf):
    def node(kind, **fields):
        result = getattr(omegaconf, kind)()
        vars(result).update(fields, _parent=None, _metadata={"ref_type": int})
        return result

    layers = node("AnyNode", _val=40)
    beta = node("AnyNode", _val=0.9)
    betas = node("ListConfig", _content=[beta, beta])
    settings = node("DictConfig", _content={"layers": layers, "betas": betas, "lr": None})
    layers._parent = settings
    torch.save(wrapper(released(), settings), tmp_path / "x.pt")

    cfg = read_original(tmp_path / "x.pt").cfg
    assert cfg == {"layers": 40, "betas": [0.9, 0.9], "lr": None}


@pytest.mark.parametrize(
    "content",
    [
        7,
        [1, 2],
        {"a": 1},
        {"model": {"w": 1}},
        {"model": {"w": torch.ones(1), "x": "y"}},
    ],
)
def test_file_without_weights_says_what_it_holds(tmp_path, content):
    path = write(tmp_path / "x.pt", content, "zip")

    with pytest.raises(UserError, match=r"holds|not tensors"):
        read_original(path)
