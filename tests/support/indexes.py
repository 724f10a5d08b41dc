"""What an index says, to be compared with another one, and indexes of any vectors."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from onepeace.index.items import Item, Span
from onepeace.index.matrix import keep
from onepeace.index.store import Store


def content(folder: Path) -> dict:
    """All that an index says, by path, without what depends on the order in which it was said; vectors apart."""
    with closing(Store(folder)) as store:
        found = {}
        for item in store.items():
            _, spans, vectors = store.intact([item.id])[item.id]
            about = (item.modality, item.size, item.mtime_ns, item.hash, item.date, item.caption, item.metadata)
            about = (*about, item.problem, item.note, spans, item.width, item.height, item.duration)
            about = (*about, item.tags, store.words([item.id])[item.id])
            found[item.path] = about, vectors
        return found


def check_same(folder: Path, other: Path) -> None:
    """Two indexes say the same of the same files, whatever way led there."""
    one, two = content(folder), content(other)
    assert {path: about for path, (about, _) in one.items()} == {path: about for path, (about, _) in two.items()}
    for path, (_, vectors) in one.items():
        assert vectors.shape == two[path][1].shape
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(vectors, two[path][1], atol=1e-4, err_msg=path)


def fabricate(folder: Path, files: Sequence[tuple[Item, Sequence[float]]], **about: str) -> Path:
    """An index of one vector for each file, which may be of any length but 0."""
    vectors = np.array([vector for _, vector in files], np.float32)
    meta = {"model": "fake", "model_hash": "0", "preprocessing": "1", "modalities": "text image audio"}
    meta |= {"store": "local", **about}
    with closing(Store.create(folder, vectors.shape[1], meta)) as store:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        with store.transaction():
            store.add([(item, [Span(item.modality)]) for item, _ in files], unit)
        keep(store)
    return folder
