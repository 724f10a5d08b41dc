"""Write the pictures of synthetic.yaml, for which it is known what the denoising term should learn:
python recipes/ablation/synthetic_data.py FOLDER

A picture is 4 x 4 patches of 8 pixels. All of its patches show the pattern of its class, faintly, and each patch shows
another pattern, drawn for it alone, twice as strongly. Patches share only the class, so visible patches say
nothing else about a hidden one; a model trained on few pairs may learn the other patterns instead.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from onepeace.data.write import new_shards

CLASSES, OTHERS, SIDE, PATCH = 40, 400, 4, 8
SYLLABLES = ("bel", "dax", "fim", "gor", "kul", "mip", "nev", "tos")


def picture(pattern: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> bytes:
    """A PNG of ``pattern`` (8, 8, 3) mixed with patterns drawn from ``others`` (N, 8, 8, 3)."""
    rows = []
    for _ in range(SIDE):
        drawn = others[rng.integers(len(others), size=SIDE)]
        rows.append(np.concatenate([*(0.33 * pattern + 0.67 * drawn)], axis=1))
    file = io.BytesIO()
    Image.fromarray((127.5 + 127.5 * np.concatenate(rows).clip(-1, 1)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, prefix: str, each: int, patterns: np.ndarray, others: np.ndarray, seed: int) -> None:
    """Write ``each`` pictures of each class, with its name."""
    rng = np.random.default_rng(seed)
    with new_shards(folder, prefix) as writer:
        for i in range(each):
            for number, pattern in enumerate(patterns):
                name = f"{SYLLABLES[number % 8]} {SYLLABLES[number // 8]}"
                media = {"png": picture(pattern, others, rng)}
                writer.write(f"{number}-{i}", media, [name], targets={"label": name})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rng = np.random.default_rng(0)
    patterns, others = (rng.choice([-1.0, 1.0], (count, PATCH, PATCH, 3)) for count in (CLASSES, OTHERS))
    for prefix, each, seed in (("pairs", 1, 1), ("unpaired", 100, 2), ("dev", 5, 3), ("val", 25, 4)):
        write(folder, prefix, each, patterns, others, seed)
    write(folder, "classless", 100, np.zeros_like(patterns), others, seed=5)  # their patches have nothing in common


if __name__ == "__main__":
    main()
