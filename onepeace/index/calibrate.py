"""Makes the banks of unrelated queries of a model (ranking.py)."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.index.index import Index
from onepeace.index.ranking import Banks

FILE = "calibration.safetensors"
"""Its name in a model folder."""
TEXTS = {
    "word": "names.txt",
    "word/audio": "sounds.txt",
    "sentence": "sentences.txt",
    "sentence/audio": "sound_sentences.txt",
}
"""Bank -> its texts, a file of this package with one in each line.

Sounds have texts of their own: most things make no sound, and a query for a sound beats their names too easily."""
KEPT = {"image": 0.9, "audio": 0.15}
"""Bank of what a model folder brings -> share that is kept of the files it is made from: those least like the others.

What has its like among generic files has it in many folders too, and then it is no query without an answer. There are
fewer kinds of sounds than of pictures, so more of them are left out."""
DRAWN = 1000
"""Pictures, and sounds, that a bank is made from."""


def texts_of(bank: str) -> list[str]:
    """The texts of a bank that come with the package."""
    return resources.files("onepeace.index").joinpath(TEXTS[bank]).read_text(encoding="utf-8").splitlines()


def banks_of_words(embedder: Any) -> Banks:
    """The banks of texts of a model, an `Embedder` or a pool of them, which reads them now."""
    return Banks({bank: np.asarray(embedder.encode_text(texts_of(bank), progress=False)) for bank in TEXTS})


def read_calibration(folder: Path, model: str) -> bytes | None:
    """Content of the calibration file of a model folder; None if there is none, or it is of another model.

    Args:
        model: hash of the model (onepeace/hub/fingerprint.py).

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        return content if Banks.load(content).model == model else None
    except (UserError, OSError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def calibrate(index: Index) -> Banks:
    """The banks of an index's model: its texts, and pictures and sounds of the index; always the same ones.

    Raises:
        UserError: no picture or sound in the index.
    """
    vectors = {bank: rows for bank, rows in index.banks.vectors.items() if bank in TEXTS}
    items, means = index.means()
    kinds, random = np.array([item.modality for item in items]), np.random.default_rng(0)
    for kind, share in KEPT.items():
        if (own := np.flatnonzero(kinds == kind)).size:
            vectors[kind] = least_alike(means[random.permutation(own)[:DRAWN]], share)
    if vectors.keys() <= TEXTS.keys():
        raise UserError(f"{index.folder}: no picture or sound in it")
    return Banks(vectors, index.model_hash)


def least_alike(vectors: NDArray, share: float) -> NDArray:
    """The share of unit vectors (n, E) whose nearest other one is the farthest away, at least one."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return vectors[np.sort(np.argsort(cosines.max(axis=1), kind="stable")[: max(1, round(share * len(vectors)))])]
