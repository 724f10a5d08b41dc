"""Text branch of a model as an ONNX file in the user's cache: text queries then need neither the model nor torch."""

import json
import logging
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from onepeace.errors import UserError, one_line
from onepeace.export.session import need_writers, open_session
from onepeace.files.atomic import cache_folder
from onepeace.files.sums import SUMS, is_intact, read_sums
from onepeace.processors.tokenizer import PAD, TextPieces, read_tokenizer
from onepeace.progress import status

log = logging.getLogger(__name__)


class TextBranch:
    """Text encoder that computes the vectors of the model without loading the model or torch.

    Args:
        folder: a folder written by `keep_text_branch`.
        optimize: see `open_session`.

    Attributes:
        tokenizer: of the package tokenizers.
        session: of onnxruntime.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
        OSError, KeyError, ValueError: the folder is damaged.
    """

    def __init__(self, folder: Path, *, optimize: bool = False) -> None:
        for name, digest in read_sums(folder).digests.items():
            if not is_intact(folder / name, digest):
                raise ValueError(f"{name} is damaged")
        branch = json.loads((folder / "export.json").read_bytes())["branches"]["text"]
        self.tokenizer = read_tokenizer(folder / "tokenizer.json")
        self._pieces = TextPieces(self.tokenizer, **branch["preprocessing"])
        self.session = open_session(folder / branch["file"], optimize=optimize)

    @classmethod
    def open(cls, model_hash: str, *, optimize: bool = False) -> "TextBranch | None":
        """Open the branch of a model; None if there is none or, after a warning, if it cannot be used.

        A damaged one is written again by `keep_text_branch`, after the next update of an index.
        """
        folder = text_branch_folder(model_hash)
        try:
            # Another environment, which has onnxruntime, may have written it.
            is_there = (folder / SUMS).is_file() and find_spec("onnxruntime")
            return cls(folder, optimize=optimize) if is_there else None
        except (UserError, OSError, KeyError, ValueError) as error:
            log.warning("%s: not used (%s), so the model is loaded", folder, one_line(error))
            if isinstance(error, KeyError | ValueError):
                shutil.rmtree(folder, ignore_errors=True)
            return None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 unit vectors (n, E) of n texts."""
        rows = [self._pieces.cut(self._pieces.prepare(text))[0] for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.full((len(rows), lengths.max()), PAD, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return self.session.run(None, {"ids": ids, "lengths": lengths})[0]


def text_branch_folder(model_hash: str) -> Path:
    """Path of a model's text branch in the cache; it may not exist."""
    return cache_folder() / "text" / model_hash


def keep_text_branch(model: str, model_hash: str) -> None:
    """Export the text branch of a model to the cache unless it is there; does nothing without the required packages.

    Args:
        model: name of the model, see `onepeace.load`.
    """
    folder = text_branch_folder(model_hash)
    if (folder / SUMS).is_file():
        return
    try:
        need_writers()
        from onepeace.export.folder import export_model

        folder.parent.mkdir(parents=True, exist_ok=True)
        status("writing the text branch of the model, once, for queries without the model ...")
        export_model(model, folder, modalities=["text"], replace=True)
    except (UserError, OSError) as error:  # the branch only saves time
        log.info("%s: not written (%s); text queries load the model", folder, one_line(error))
