"""The text branch of a model beside an index, as `onepeace export` writes it: words become vectors without torch."""

import json
import logging
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onepeace.errors import UserError, need, one_line
from onepeace.index.store import Store

log = logging.getLogger(__name__)

FOLDER, RECORD, TOKENIZER = "text", "export.json", "tokenizer.json"
EXPORT_FROM = 1000
"""Files from which on the text branch is kept: writing it takes ten seconds, a query without it three."""


class TextBranch:
    """Texts to the vectors that the model gives for them, without the model.

    Args:
        folder: of the export.

    Raises:
        UserError: onnxruntime is not installed, or does not read the file; OSError, KeyError, ValueError: no export.
    """

    def __init__(self, folder: Path) -> None:
        from onepeace.export.session import open_session
        from onepeace.processors.pieces import TextPieces
        from onepeace.processors.tokenizer import read_tokenizer

        branch = json.loads((folder / RECORD).read_bytes())["branches"]["text"]
        self._pieces = TextPieces(read_tokenizer(folder / TOKENIZER), **branch["preprocessing"])
        self._session = open_session(folder / branch["file"], optimize=False)

    @classmethod
    def open(cls, store: Store) -> "TextBranch | None":
        """The branch of an index; None, after one line in the log, if there is none that can be used."""
        folder, known = store.folder / FOLDER, json.loads(store.meta.get("text_branch", "{}"))
        if not known:
            return None
        try:
            if fault := fault_of(store):
                raise UserError(fault)
            return cls(folder)
        except (UserError, OSError, KeyError, ValueError) as error:
            log.warning("%s: not used (%s); the model reads the words", folder, one_line(error))
            return None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) float32 unit vectors of n texts."""
        from onepeace.processors.tokenizer import PAD

        rows = [self._pieces.cut(self._pieces.prepare(text))[0] for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.full((len(rows), lengths.max()), PAD, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return self._session.run(None, {"ids": ids, "lengths": lengths})[0]


def fault_of(store: Store) -> str | None:
    """What is wrong with the files of the branch; None if they are what was written, or there is none."""
    for name, crc in json.loads(store.meta.get("text_branch", "{}")).items():
        try:
            if zlib.crc32((store.folder / FOLDER / name).read_bytes()) != crc:
                return f"{FOLDER}/{name} is not what was written"
        except OSError as error:
            return f"{FOLDER}/{name}: {error.strerror or 'cannot be read'}"
    return None


def keep(store: Store, model: str) -> None:
    """Write the branch of a model beside an index of many files, if the packages for it are installed.

    Args:
        store: open for writing.
        model: a name as `onepeace.load` takes it.
    """
    is_there = bool(json.loads(store.meta.get("text_branch", "{}"))) and fault_of(store) is None
    if is_there or "text" not in store.meta["modalities"].split() or store.count("problem IS NULL") < EXPORT_FROM:
        return
    folder = store.folder / FOLDER
    try:
        need("onnxruntime", "onnx")
        need("onnx", "onnx")
        need("onnxscript", "onnx")
        from onepeace.export.folder import export_model

        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        export_model(model, folder, modalities=["text"])
    except (UserError, OSError) as error:  # the files only save time
        log.info("%s: not kept (%s); queries of words load the model", folder, one_line(error))
        return
    record(store)


def record(store: Store) -> None:
    """Keep checksums of the files of the branch, as they are now; none if there are none."""
    folder = store.folder / FOLDER
    crcs = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.glob("*"))}
    with store.transaction():
        store.set_meta(text_branch=json.dumps(crcs))
