"""Vectors with their paths in a file or folder: what is written is read, what others write too, and no pickles."""

import json

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.files.embeddings import COLUMNS, Embeddings, read_embeddings, write_file, write_folder

PATHS = ["/a/one.jpg", "/a/line\nbreak \u2028.ogg", "/a/caf\udce9.txt"]
ABOUT = [
    dict.fromkeys(COLUMNS) | {"size": 5, "mtime": 1.5, "width": 3, "metadata": {"n": [1]}, "kind": "image"},
    dict.fromkeys(COLUMNS) | {"start": 0.0, "end": 2.5, "caption": "one\ntwo \u2028"},
    dict.fromkeys(COLUMNS),
]


@pytest.fixture
def embeddings():
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return Embeddings(vectors, PATHS, ["image", "audio", "text"], ABOUT)


def write(path, embeddings):
    if path.suffix:
        write_file(path, embeddings)
    else:
        write_folder(path, embeddings, [{"path": "/a/broken.jpg", "problem": "why"}])


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.parquet", "folder"])
@pytest.mark.parametrize("about", [ABOUT, ()])
def test_what_is_written_is_read(tmp_path, embeddings, name, about):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    written = Embeddings(embeddings.vectors, PATHS, embeddings.modalities, about)
    write(tmp_path / name, written)
    read = read_embeddings(tmp_path / name)
    np.testing.assert_array_equal(read.vectors, embeddings.vectors)
    # Parquet's text is UTF-8: what of a path is none becomes an escape.
    assert list(read.paths) == [*PATHS[:2], "/a/caf\\udce9.txt" if name.endswith("parquet") else PATHS[2]]
    assert list(read.modalities) == ["image", "audio", "text"]
    for found, expected in zip(read.about or about, about, strict=bool(about)):
        assert {key: found.get(key) for key in COLUMNS} == expected
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing temporary is left


def test_folder_is_readable_by_anyone(tmp_path, embeddings):
    write(tmp_path / "folder", embeddings)
    np.testing.assert_array_equal(np.load(tmp_path / "folder" / "vectors.npy"), embeddings.vectors)
    lines = (tmp_path / "folder" / "manifest.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line)["path"] for line in lines] == [*PATHS, "/a/broken.jpg"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.zeros((2, 3))}, "no paths in it"),
        ({"paths": np.array(["a"])}, "no vectors in it"),
        (
            {"vectors": np.zeros((2, 3)), "paths": np.array(["a", None])},
            "it holds pickled objects, which are not loaded",
        ),
        ({"vectors": np.zeros((2, 3)), "paths": np.array(["a"])}, "2 vectors, 1 paths and 1 modalities"),
        ({"vectors": np.zeros((2, 3), int), "paths": np.array(["a", "b"])}, r"floats \(n, E\), not int64 \(2, 3\)"),
        ({"vectors": np.zeros(2), "paths": np.array(["a", "b"])}, r"floats \(n, E\), not float64 \(2,\)"),
    ],
)
def test_other_arrays_are_an_error(tmp_path, arrays, message):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(UserError, match=f"v.npz: .*{message}"):
        read_embeddings(tmp_path / "v.npz")


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.parquet", "v.csv", "folder"])
@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_other_files_are_an_error(tmp_path, name, content):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    if content is not None and name == "folder":
        path.mkdir()
        (path / "vectors.npy").write_bytes(content)
        (path / "manifest.jsonl").write_bytes(content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: ") as caught:
        read_embeddings(path)
    assert "\n" not in str(caught.value)
