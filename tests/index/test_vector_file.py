"""Files of vectors in each form: nothing is lost, and no pickles."""

import json

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, Item
from onepeace.index.export import export
from onepeace.index.vector_file import write_vectors

PATHS = ["/a/one.jpg", "/a/line\nbreak \u2028.ogg", "/a/caf\udce9.txt"]
ITEMS = [
    Item(PATHS[0], "image", 5, 1_500_000_000, hash=b"1" * 16, date=2.5, width=3, height=4, metadata={"n": [1]}),
    Item(PATHS[1], "audio", 6, duration=2.5, caption="one\ntwo \u2028", note="odd"),
    Item(PATHS[2], "text", 7),
]
VECTORS = np.eye(3, dtype=np.float32)


@pytest.fixture
def index(tmp_path):
    return fabricate(tmp_path / "index", list(zip(ITEMS, VECTORS, strict=True)))


def test_arrays_have_vectors_paths_and_times(tmp_path):
    times = [(None, None), (0.0, 2.5), (None, None)]
    columns = [
        {"path": item.path, "kind": item.modality, "modality": "image", "start": start, "end": end}
        for item, (start, end) in zip(ITEMS, times, strict=True)
    ]
    with write_vectors(tmp_path / "v.npz", 3) as writer:
        writer.write(columns[:2], VECTORS[:2])
        writer.write(columns[2:], VECTORS[2:])
    with np.load(tmp_path / "v.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["vectors"], VECTORS)
        assert data["paths"].tolist() == PATHS
        assert data["kinds"].tolist() == ["image", "audio", "text"]
        assert data["modalities"].tolist() == 3 * ["image"]
        np.testing.assert_array_equal(data["starts"], [np.nan, 0.0, np.nan])
        np.testing.assert_array_equal(data["ends"], [np.nan, 2.5, np.nan])
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]  # nothing temporary is left


def test_lines_have_what_is_known(index, tmp_path):
    with Index.open(index) as opened:
        assert export(opened, tmp_path / "v.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal([row["vector"] for row in rows], VECTORS)
    assert [row["path"] for row in rows] == [*PATHS[:2], "/a/caf\ufffd.txt"]
    assert rows[0].items() >= {"kind": "image", "modality": "image", "width": 3}.items()
    assert "start" not in rows[0]


def test_parquet_has_columns(index, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with Index.open(index) as opened:
        export(opened, tmp_path / "v.parquet")
    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    np.testing.assert_array_equal([row["vector"] for row in rows], VECTORS)
    # Parquet's text is UTF-8: what of a path is none becomes an escape.
    assert [row["path"] for row in rows] == [*PATHS[:2], "/a/caf\\udce9.txt"]
    assert [row["modality"] for row in rows] == ["image", "audio", "text"]
    first = {"size": 5, "mtime": 1.5, "hash": "31" * 16, "date": 2.5, "width": 3, "height": 4, "kind": "image"}
    assert rows[0].items() >= first.items()
    assert json.loads(rows[0]["metadata"]) == {"n": [1]}
    assert rows[1].items() >= {"duration": 2.5, "caption": "one\ntwo \u2028", "note": "odd"}.items()


def test_what_cannot_be_written_is_said(index, tmp_path):
    with Index.open(index) as opened:
        with pytest.raises(UsageError, match=r"v\.csv"):
            export(opened, tmp_path / "v.csv")
        with pytest.raises(UserError, match=r"none/v\.npz"):
            export(opened, tmp_path / "none" / "v.npz")
