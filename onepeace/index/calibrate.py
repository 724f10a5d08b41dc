"""Creation of a model's banks of unrelated queries (match.py)."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import make_folder, write_atomic
from onepeace.files.cache import cache_folder
from onepeace.index.banks import Banks
from onepeace.index.index import Index
from onepeace.progress import status

CALIBRATION = "calibration.safetensors"
"""Name of the calibration file in a model folder."""
TEXTS = {
    "word": "names.txt",
    "word/audio": "sounds.txt",
    "sentence": "sentences.txt",
    "sentence/audio": "sound_sentences.txt",
}
"""Name of the file with the texts of each bank, one per line.

Sounds have their own texts: most things make no sound, so a query for a sound outscores their names too easily."""
KEPT = {"image": 0.7, "audio": 0.2}
"""Share of the generic files kept per bank of a model folder: the files least similar to all others.

A file that resembles other generic files resembles files in many folders, where it is not an unrelated query. There are
fewer kinds of sounds than of pictures, so fewer sounds are kept."""
DRAWN = 1000
"""Number of pictures, and of sounds, to select a bank from."""


def texts_of(bank: str) -> list[str]:
    """Texts of a bank, which are part of the package."""
    file = resources.files("onepeace.index") / TEXTS[bank]
    return file.read_text(encoding="utf-8").splitlines()


def calibration_by_words(load: Callable[[], Any], model: str) -> bytes:
    """Content of a calibration file with the text banks alone, which a model encodes once; the cache folder keeps them.

    Args:
        load: returns the model, an `Embedder` or a pool of them; called only if the banks are not kept.
        model: hash of the model.
    """
    all_texts = [text for bank in TEXTS for text in texts_of(bank)]
    digest = hashlib.sha256("\n".join(all_texts).encode()).hexdigest()
    path = cache_folder() / "banks" / f"{model}-{digest[:8]}.safetensors"
    try:
        content = path.read_bytes()
        Banks.load(content)
        return content
    except (OSError, UserError):  # there is none, or it is damaged
        pass
    embedder = load()
    status("encoding the generic words that the match compares with, once for this model ...")
    vectors = {bank: np.asarray(embedder.encode_text(texts_of(bank))) for bank in TEXTS}
    content = Banks(vectors, model).to_bytes()
    with suppress(OSError):  # it only saves time
        make_folder(path.parent)
        with write_atomic(path) as temporary:
            temporary.write_bytes(content)
    return content


def read_calibration(folder: Path, model: str) -> bytes | None:
    """Content of the calibration file of a model folder; None if it does not exist or belongs to another model.

    Args:
        model: hash of the model (onepeace/hub/fingerprint.py).

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        return content if Banks.load(content).model == model else None
    except (UserError, OSError) as error:
        raise UserError(f"{one_line(error)}", where=path) from error


def calibrate(index: Index) -> Banks:
    """Create the banks of an index's model from texts and from pictures and sounds of the index (deterministic).

    Raises:
        UserError: the index has no pictures or sounds.
    """
    vectors = {}
    for bank, bank_vectors in index.banks.vectors.items():
        if bank in TEXTS:
            vectors[bank] = bank_vectors
    items, means = index.means()
    modalities = np.array([item.modality for item in items])
    random = np.random.default_rng(0)
    for modality, share in KEPT.items():
        rows = np.flatnonzero(modalities == modality)
        if len(rows):
            drawn = random.permutation(rows)[:DRAWN]
            vectors[modality] = least_alike(means[drawn], share)
    if vectors.keys() <= TEXTS.keys():
        raise UserError("no picture or sound in it", where=index.folder)
    return Banks(vectors, index.model_hash)


def least_alike(vectors: NDArray, share: float) -> NDArray:
    """The given share of the unit vectors (n, E) whose nearest neighbours are farthest away, at least one."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    number = max(1, round(share * len(vectors)))
    farthest = np.argsort(cosines.max(axis=1), kind="stable")[:number]
    return vectors[np.sort(farthest)]
