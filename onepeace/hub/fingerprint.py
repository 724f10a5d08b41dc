"""Identity of the model that made a vector: a short hash of its folder, cheap for models of gigabytes."""

import hashlib
from pathlib import Path

PARTS, PART = 64, 1 << 16
"""Places of a weights file that are read, and bytes at each; a smaller file is read whole."""


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits, of the configuration, the vocabulary and samples of the weights.

    Two trainings never agree in all the places that are read; a file that was changed in one bit elsewhere passes.
    """
    about = hashlib.blake2b(digest_size=8)
    paths = [folder / "config.yaml", folder / "tokenizer.json", *sorted(folder.glob("model*.safetensors"))]
    for path in filter(Path.is_file, paths):
        size = path.stat().st_size
        about.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= PARTS * PART:
                about.update(file.read())
                continue
            for i in range(PARTS):
                file.seek(i * (size - PART) // (PARTS - 1))
                about.update(file.read(PART))
    return about.hexdigest()
