"""What an index says, to be compared with another one, and indexes of any vectors."""

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.index.database import Store
from onepeace.index.index import Index
from onepeace.index.items import Item, Span
from onepeace.index.record import Report
from onepeace.index.vectors import keep

MODALITIES = {"jpg": "image", "png": "image", "ogg": "audio", "wav": "audio", "txt": "text"}
META = {"model": "fake", "model_hash": "0", "preprocessing": "1", "modalities": "text image audio", "store": "local"}


class Content(NamedTuple):
    """What an index says of a file."""

    fields: dict[str, Any]
    vectors: np.ndarray


def content(folder: Path) -> dict[str, Content]:
    """What an index says of each file, by path, without what depends on the order in which files were added."""
    contents = {}
    with closing(Store(folder)) as store:
        for item in store.items():
            spans, vectors = store.vectors_of(item.id)
            fields = {**vars(item), "id": None, "spans": spans, "words": store.words(item.id)}
            contents[item.path] = Content(fields, vectors)
    return contents


def check_same(folder: Path, other_folder: Path) -> None:
    """Two indexes say the same of the same files, whatever way led there."""
    contents = content(folder)
    expected = content(other_folder)
    assert {path: file.fields for path, file in contents.items()} == {
        path: file.fields for path, file in expected.items()
    }
    for path, file in contents.items():
        assert file.vectors.shape == expected[path].vectors.shape
        assert np.isfinite(file.vectors).all()
        np.testing.assert_allclose(
            file.vectors,
            expected[path].vectors,
            atol=1e-4,
            err_msg=path,
        )


def items_by_name(folder: Path) -> dict[str, Item]:
    """The embedded files of an index by the last part of their paths."""
    with Index.open(folder) as index:
        return {os.path.basename(item.path): item for item in index.items()}


def modality_of(name: str) -> str:
    return MODALITIES[name.rpartition(".")[2]]


def item_of(path: Path, **fields: Any) -> Item:
    """A file as it is now."""
    status = path.stat()
    return Item(str(path), modality_of(path.name), status.st_size, status.st_mtime_ns, **fields)


def unit(rows: Any) -> np.ndarray:
    """One or more vectors of length 1 in float32."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def add(store: Store, files: Iterable[tuple[Item, Sequence[float]]]) -> None:
    """Files of one vector each, which may be of any length but 0, in a transaction of the caller."""
    for item, vector in files:
        store.add(item, [Span(item.kind)], unit(vector))


def fabricate(folder: Path, files: Sequence[tuple[Item, Sequence[float]]], **meta: str) -> Path:
    """An index of one vector for each file, which may be of any length but 0."""
    with closing(Store.create(folder, len(files[0][1]), META | meta)) as store:
        with store.transaction():
            add(store, files)
        keep(store)
    return folder


def put(index: Index, part: str, value: Any) -> None:
    """Give an open index another part, such as its "banks", until it changes on the disk."""
    with index.reading() as state:
        assert state._part(part, lambda: value) is value


def counts(report: Report) -> dict[str, int]:
    """How many files were added, changed, ...; without those that are 0."""
    names = ("added", "changed", "copied", "moved", "removed", "unchanged", "known_problems")
    return {name: getattr(report, name) for name in names if getattr(report, name)}
