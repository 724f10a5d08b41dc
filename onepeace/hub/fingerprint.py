"""Identity of the model that made a vector: a short hash of its folder, cheap for models of gigabytes."""

import hashlib
from pathlib import Path

PARTS, PART = 64, 1 << 16
"""Number of samples read from a weights file, and bytes of each; a smaller file is read completely."""


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
