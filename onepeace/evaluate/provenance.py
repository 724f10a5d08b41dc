"""Which model a result is of: a hash of what its folder computes with."""

import hashlib
from pathlib import Path

PARTS = ("config.yaml", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")
"""The model card is not one of them."""


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and SHA-256 sums of the files of a model folder, as `sha256sum` lists them by name."""
    files = sorted({path for part in PARTS for path in folder.glob(part)})
    return hashlib.sha256("".join(f"{_sum(path)}  {path.name}\n" for path in files).encode()).hexdigest()


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
