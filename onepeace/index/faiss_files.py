"""What the structures of FAISS share: how rows get into them, and their files."""

from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import need
from onepeace.index.approximate import CHUNK, Approximate
from onepeace.index.exact import Scored


class FaissStructure(Approximate):
    """Its library's index is one of FAISS."""

    @classmethod
    def library(cls) -> str:
        return f"faiss {need('faiss', 'index').__version__}"

    def save(self, path: Path) -> None:
        faiss = need("faiss", "index")
        # Through Python's file: FAISS's own does not look at whether its last bytes could be written.
        with path.open("wb", buffering=1 << 20) as file:
            faiss.write_index(self.native, faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def _read(cls, path: Path) -> Any:
        faiss = need("faiss", "index")
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def fill(index: Any, scored: Scored, learned: int) -> None:
    """Put all rows into an index that first learns from so many of them, drawn by chance and always the same."""
    some = np.random.default_rng(0).choice(scored.rows, min(scored.rows, learned), replace=False)
    index.train(scored.folded(np.sort(some)))
    for start in range(0, scored.rows, CHUNK):
        index.add(scored.folded(slice(start, start + CHUNK)))
