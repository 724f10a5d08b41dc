"""Identity of a model, by which its vectors are told from those of another: a short hash of its folder, and a name."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from onepeace.hub.resolve import full_name, resolve

PARTS, PART = 64, 1 << 16
"""Number of samples read from a weights file, and bytes of each; a smaller file is read completely."""


class Identity(NamedTuple):
    """Name and hash of a model."""

    name: str
    """Name for people; for a model folder its absolute path."""
    hash: str
    """Two models with the same hash are taken to give the same vectors."""
    is_loadable: bool = False
    """Whether `onepeace.load` gives the model by its name."""


def identify(name: str | os.PathLike[str]) -> Identity:
    """Identity of a model that `onepeace.load` gives by its name, without loading it.

    Raises:
        UserError: there is no model of that name.
    """
    return Identity(full_name(name), fingerprint(resolve(name)), is_loadable=True)


def fingerprint(folder: Path) -> str:
    """Hash (16 hexadecimal digits) of the configuration, the vocabulary and samples of the weights.

    Different trainings differ in the samples; a change of a few bits outside of them is not detected.
    """
    digest = hashlib.blake2b(digest_size=8)
    paths = [folder / "config.yaml", folder / "tokenizer.json", *sorted(folder.glob("model*.safetensors"))]
    for path in filter(Path.is_file, paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= PARTS * PART:
                digest.update(file.read())
                continue
            for i in range(PARTS):
                file.seek(i * (size - PART) // (PARTS - 1))
                digest.update(file.read(PART))
    return digest.hexdigest()
