"""The text branch of a model as an ONNX file in the user's cache: a query of words needs no model and no torch."""

import json
import logging
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from onepeace.errors import UserError, need, one_line
from onepeace.export.session import open_session
from onepeace.files.atomic import write_text_atomic
from onepeace.files.cache import cache_folder
from onepeace.processors.pieces import TextPieces
from onepeace.processors.tokenizer import PAD, read_tokenizer
from onepeace.progress import status

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
"""CRC-32 of each file of a branch."""


class TextBranch:
    """Texts to the vectors that the model gives for them, without the model and without torch.

    Args:
        folder: written by `keep_text_branch`.

    Raises:
        UserError: onnxruntime is not installed, or does not read the file; OSError, KeyError, ValueError: it is not
            what was written.
    """

    def __init__(self, folder: Path) -> None:
        for name, crc in json.loads((folder / CHECKSUMS).read_bytes()).items():
            if zlib.crc32((folder / name).read_bytes()) != crc:
                raise ValueError(f"{name} is not what was written")
        branch = json.loads((folder / "export.json").read_bytes())["branches"]["text"]
        self._pieces = TextPieces(read_tokenizer(folder / "tokenizer.json"), **branch["preprocessing"])
        self._session = open_session(folder / branch["file"], optimize=False)

    @classmethod
    def open(cls, model_hash: str) -> "TextBranch | None":
        """The branch of a model; None, if it was not kept, or after one line in the log, if it cannot be used."""
        folder = text_branch_folder(model_hash)
        try:
            # It may have been kept by an environment that has onnxruntime.
            return cls(folder) if (folder / CHECKSUMS).is_file() and find_spec("onnxruntime") else None
        except (UserError, OSError, KeyError, ValueError) as error:
            log.warning("%s: not used (%s); the model reads the words; delete it", folder, one_line(error))
            return None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) float32 unit vectors of n texts."""
        rows = [self._pieces.cut(self._pieces.prepare(text))[0] for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.full((len(rows), lengths.max()), PAD, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return self._session.run(None, {"ids": ids, "lengths": lengths})[0]


def text_branch_folder(model_hash: str) -> Path:
    """Folder of the text branch of a model in the cache, whether it is there or not."""
    return cache_folder() / "text" / model_hash


def keep_text_branch(model: str, model_hash: str) -> None:
    """Write the text branch of a model to the cache, as `onepeace export` does, if it is not there and the packages for
    it are installed.

    Args:
        model: a name as `onepeace.load` takes it.
    """
    folder = text_branch_folder(model_hash)
    if (folder / CHECKSUMS).is_file():
        return
    try:
        need("onnxruntime", "onnx")
        need("onnx", "onnx")
        need("onnxscript", "onnx")
        from onepeace.export.folder import export_model

        folder.parent.mkdir(parents=True, exist_ok=True)
        status("writing the text branch of the model, once, for queries without the model ...")
        export_model(model, folder, modalities=["text"], replace=True)
        crcs = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir())}
        write_text_atomic(folder / CHECKSUMS, json.dumps(crcs))
    except (UserError, OSError) as error:  # the files only save time
        log.info("%s: not kept (%s); queries of words load the model", folder, one_line(error))
