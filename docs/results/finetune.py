"""Compare held-out figures with files collected later: the tables of finetune.md.

``python docs/results/finetune.py FOLDER`` reads the labelled shards train/image_text/{labelled_mix,caltech101}-* and
train/audio_text/sounds-* below FOLDER, computes their vectors once (kept in --cache), and learns linear classifiers.
"""

import argparse
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

import onepeace
from onepeace.data.sample import Sample
from onepeace.data.source import read_source
from onepeace.datasets.layout import Record
from onepeace.evaluate.intervals import gain_of_groups, interval
from onepeace.evaluate.protocols.probe import probe
from onepeace.evaluate.protocols.protocol import Labelled
from onepeace.finetune.split import FILE, GROUP, NEAR_COPY_COSINE, hold_out, near_copies
from onepeace.index.groups import connected

SHARDS = {
    "labelled_mix": ("image", "train/image_text/labelled_mix-*.tar.gz", "*"),
    "caltech101": ("image", "train/image_text/caltech101-*.tar.gz", "*"),
    "sounds": ("audio", "train/audio_text/sounds-*.tar.gz", "us8k_*"),
}
"""Modality, shards and keys."""
REPETITIONS = [
    *(("labelled_mix", prefix) for prefix in ("nette", "scene", "cloth", "pacs", "nette", "scene", "cloth", "trash")),
    ("caltech101", "c101"),
    ("sounds", "us8k"),
]
"""Shards, and the key prefix of a set; five of its classes are drawn."""
NOW, CLASSES = 50, 5
THRESHOLDS = {"pictures": (0.9, 0.92, 0.94, 0.96), "sounds": (0.96, 0.97, 0.98, 0.99)}


class Items:
    """Samples of shards with their vectors in `tiny-fast`."""

    def __init__(self, root: Path, cache: Path, name: str) -> None:
        self.kind, pattern, keys = SHARDS[name]
        self.samples: list[Sample] = read_source(pattern, [self.kind], root, keys=keys)
        self.keys = [sample.key for sample in self.samples]
        file = cache / f"{name}.npy"
        if not file.exists():
            model = onepeace.load("tiny-fast")
            contents = (sample.read(self.kind) for sample in self.samples)
            np.save(file, model.encode([{self.kind: content} for content in contents]))
        self.vectors = np.load(file)


def by_name(key: str) -> list[int | str]:
    """Sort key: numbers by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def repetition(items: Items, prefix: str, in_order: bool, random: np.random.Generator) -> list[str]:
    """Learn from 50 files of each of five classes; returns the cells of a row of the table.

    The cells are the number of groups, the figures of the held-out part and of the later files, and whether the
    interval contains the latter; then the held-out figure and this answer for a usual split by files.
    """
    classes: dict[str, list[int]] = {}
    for i, sample in enumerate(items.samples):
        if sample.key.startswith(prefix):
            classes.setdefault(sample.label, []).append(i)
    large = sorted(label for label, own in classes.items() if len(own) >= NOW + 8)
    now, later = [], []
    for label in random.choice(large, CLASSES, replace=False):
        own = sorted(classes[label], key=lambda i: by_name(items.keys[i]))
        own = own if in_order else random.permutation(own).tolist()
        now, later = now + own[:NOW], later + own[NOW:]
    pairs = near_copies(items.vectors[now], NEAR_COPY_COSINE[items.kind])
    groups = connected(len(now), pairs)
    group_of = {i: number for number, members in enumerate(groups) for i in members}
    found = []
    for numbers in ([group_of[i] for i in range(len(now))], list(range(len(now)))):
        right, others, of = learned(items, now, later, numbers)
        figure = gain_of_groups(right, right, of)[1] if not found else interval(right.tolist())
        low, high = figure[-2:]
        found.append((right.mean(), low, high, others.mean()))
    (held, low, high, after), (files, *ends, _) = found
    return [
        f"{len(groups)}", f"{held:.0%} ({low:.0%}..{high:.0%})", f"{after:.0%} of {len(later)}",
        "yes" if low <= after <= high else "no",
        f"{files:.0%} ({ends[0]:.0%}..{ends[1]:.0%})", "yes" if ends[0] <= found[1][3] <= ends[1] else "no",
    ]  # fmt: skip


def learned(
    items: Items, now: list[int], later: list[int], groups: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train a linear probe; returns its results (0 or 1) on held-out and later files, and the groups of the former."""
    records = [
        Record(str(i), "", {items.kind: Path(items.keys[i])},
               {"label": items.samples[i].label, GROUP: group, FILE: items.keys[i]})
        for i, group in zip(now, groups, strict=True)
    ]  # fmt: skip
    train, held = hold_out(records)
    rows = [int(record.key) for record in (*train, *held)] + later
    labels = np.array([items.samples[i].label for i in rows])
    sides = (Labelled(items.vectors[rows[part]], labels[part]) for part in (slice(len(train)), slice(len(train), None)))
    figure = probe(*sides, "finetune.py")
    right = np.array(figure.per_query)
    return right[: len(held)], right[len(held) :], np.array([record.targets[GROUP] for record in held])


def second_picture(content: bytes, strength: float, random: np.random.Generator) -> bytes:
    """Imitate the next picture of a burst: slightly rotated, cropped, brighter or darker, and re-encoded."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture = picture.rotate(random.uniform(-3, 3) * strength, Image.Resampling.BICUBIC)
    left, top, right, bottom = random.uniform(0, 0.06 * strength, 4)
    width, height = picture.size
    picture = picture.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))
    picture = ImageEnhance.Brightness(picture).enhance(1 + random.uniform(-0.15, 0.15) * strength)
    picture.save(file := io.BytesIO(), "JPEG", quality=80)
    return file.getvalue()


def print_near_copies(all_items: dict[str, Items], random: np.random.Generator) -> None:
    """Print the shares of near copies, and of different files, whose similarity is above each threshold."""
    rows = {}
    pictures, sounds = all_items["labelled_mix"], all_items["sounds"]
    chosen = random.choice(len(pictures.samples), 200, replace=False)
    model = onepeace.load("tiny-fast", modalities=["image"])
    for strength in (0.5, 1.0):
        made = [second_picture(pictures.samples[i].read("image"), strength, random) for i in chosen]
        vectors = model.encode_image(made).numpy()
        rows[f"second pictures, strength {strength:g}"] = (vectors * pictures.vectors[chosen]).sum(axis=1)
    labels = np.array([sample.label for sample in pictures.samples])
    cosines = pictures.vectors[chosen] @ pictures.vectors.T
    rows["pictures of another class, nearest"] = np.where(labels[chosen, None] != labels, cosines, -1).max(axis=1)
    recordings = np.array([key.partition("-")[0] for key in sounds.keys])
    same = recordings[:, None] == recordings
    cosines = sounds.vectors @ sounds.vectors.T - 2 * np.eye(len(same))
    rows["cuts of one recording, nearest"] = np.where(same, cosines, -1).max(axis=1)[same.sum(axis=1) > 1]
    rows["sounds of other recordings, nearest"] = np.where(same, -1, cosines).max(axis=1)
    for kind, thresholds in THRESHOLDS.items():
        print("| files | n |", " | ".join(f"from {threshold}" for threshold in thresholds), "|")
        print("| --- |" + " ---: |" * (len(thresholds) + 1))
        for name, cosines in rows.items():
            is_of_sounds = "sounds" in name or "recording" in name
            if is_of_sounds == (kind == "sounds"):
                shares = [f"{(cosines >= threshold).mean():.0%}" for threshold in thresholds]
                print(f"| {name} | {len(cosines)} |", " | ".join(shares), "|")


def print_repetitions(all_items: dict[str, Items], random: np.random.Generator) -> None:
    """Print the figures of held-out and later files, for files selected by name and at random."""
    print(
        "| set | selection | groups | held out | later | covered | by files | covered |\n| --- | --- |" + " ---: |" * 6
    )
    count = {}
    for in_order, how in ((True, "by name"), (False, "by chance")):
        for name, prefix in REPETITIONS:
            row = repetition(all_items[name], prefix, in_order, random)
            print(f"| {prefix} | {how} |", " | ".join(row), "|")
            for column, what in ((3, "groups"), (5, "files")):
                count[how, what] = count.get((how, what), 0) + (row[column] == "yes")
    for (how, what), number in count.items():
        print(f"{how}, {what}: {number} of {len(REPETITIONS)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/finetune_vectors"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    read = {name: Items(args.folder, args.cache, name) for name in SHARDS}
    print_near_copies(read, np.random.default_rng(0))
    print()
    print_repetitions(read, np.random.default_rng(0))
