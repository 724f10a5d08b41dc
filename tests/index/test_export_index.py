"""Files of vectors in each form: nothing is lost, and no pickles."""

import json
import os

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, Item
from onepeace.index.export import export

PATHS = ["/a/one.jpg", "/a/line\nbreak \u2028.ogg", "/a/caf\udce9.txt"]
ITEMS = [
    Item(
        PATHS[0],
        "image",
        5,
        1_500_000_000,
        hash=b"1" * 16,
        date=2.5,
        width=3,
        height=4,
        metadata={"n": [1]},
    ),
    Item(PATHS[1], "audio", 6, duration=2.5, caption="one\ntwo \u2028", note="odd"),
    Item(PATHS[2], "text", 7),
]
MODALITIES = ["image", "audio", "text"]
VECTORS = np.eye(3, dtype=np.float32)


@pytest.fixture
def opened(tmp_path):
    with Index.open(fabricate(tmp_path / "index", [*zip(ITEMS, VECTORS, strict=True)])) as index:
        yield index


def test_arrays_of_an_index(opened, tmp_path):
    assert export(opened, tmp_path / "v.npz") == 3

    expected = {
        "vectors": VECTORS,
        "paths": PATHS,
        "kinds": MODALITIES,
        "modalities": MODALITIES,
        "starts": [np.nan] * 3,
        "ends": [np.nan] * 3,
    }
    with np.load(tmp_path / "v.npz", allow_pickle=False) as arrays:
        assert {*arrays} == {*expected}
        for name, values in expected.items():
            np.testing.assert_array_equal(arrays[name], values)
    assert sorted(os.listdir(tmp_path)) == ["index", "v.npz"]  # nothing temporary is left


def test_parquet_has_columns(opened, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")

    export(opened, tmp_path / "v.parquet")

    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    picture = {
        "size": 5,
        "mtime": 1.5,
        "hash": "31" * 16,
        "date": 2.5,
        "width": 3,
        "height": 4,
        "kind": "image",
    }
    np.testing.assert_array_equal([row["vector"] for row in rows], VECTORS)
    # Parquet's text is UTF-8: what of a path is none becomes an escape.
    assert [row["path"] for row in rows] == [*PATHS[:2], "/a/caf\\udce9.txt"]
    assert [row["modality"] for row in rows] == MODALITIES
    assert rows[0].items() >= picture.items()
    assert json.loads(rows[0]["metadata"]) == {"n": [1]}
    assert rows[1].items() >= {"duration": 2.5, "caption": "one\ntwo \u2028", "note": "odd"}.items()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("v.jsonl", UsageError),
        ("none/v.npz", UserError),
    ],
)
def test_file_that_cannot_be_written(opened, tmp_path, name, error):
    with pytest.raises(error, match=name):
        export(opened, tmp_path / name)
