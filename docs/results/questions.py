"""Questions over files whose names say nothing, and over names that mislead: "Questions" in search.md.

``python docs/results/questions.py SHARDS`` draws classes of the validation shards below SHARDS (val/caltech101, ...),
writes files of most of them under neutral names, and asks for classes with files, and for others that have none. Then
it asks in folders with much of each thing, for "motorcycle" beside a folder of this name, and for "cat" beside files of
this name and a burst.
"""

import argparse
import io
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from words import samples_of

import onepeace
from onepeace.index import Index, build

COLLECTIONS = {
    "known": ("caltech101", "tiny_imagenet", "pacs", "fashion", "esc50_fold5", "sounds"),
    "new": ("sports", "grocery", "openclipart", "emoji"),
}
MUCH = ("tiny_imagenet", "esc50_fold5", "sports")
"""Collections with 7 to 12 files of a class."""
SOUNDS = ("esc50_fold5", "sounds")
QUESTIONS = 45
"""Number of questions with an answer, and of those without."""
OTHERS = 75
"""Number of classes with files that are not asked for."""
MOST = 5
"""Maximum number of files of a class."""
FIRST = 5
"""A question is answered if a right file is among this many first hits."""
SHOWN = 10
"""Number of hits of a question."""
PLACES = 20
"""Number of hits of a question in a folder with much of each thing."""
CALLED = ("likely", "possible")
BETTER = (*CALLED, "alike")
POSSIBLE = 0.7

Files = dict[str, list[tuple[bytes, str]]]
"""Contents and endings of the files of each class, or of each name of a drawing."""


def classes_of(shards: Path, patterns: Sequence[str]) -> Files:
    files: Files = defaultdict(list)
    for pattern in patterns:
        for shard in sorted(shards.glob(pattern)):
            ending = "ogg" if shard.parent.name in SOUNDS else "webp"
            for content, description in samples_of(shard, 10_000):
                label = description["label"] or description["captions"][0]
                files[label.lower()].append((content, ending))
    return files


def index_of(folder: Path) -> Index:
    index_folder = folder.with_suffix(".index")
    build(index_folder, [folder], progress=False)
    return Index.open(index_folder)


def print_questions(name: str, files: Files, folder: Path) -> None:
    """Print a row of the table."""
    labels = sorted(files)
    rng = random.Random(0)  # noqa: S311
    rng.shuffle(labels)
    without_answer = labels[:QUESTIONS]
    asked = labels[QUESTIONS : 2 * QUESTIONS]
    folder.mkdir()
    label_of: dict[str, str] = {}
    for label in sorted(labels[QUESTIONS : 2 * QUESTIONS + OTHERS]):
        for content, ending in files[label][:MOST]:
            path = folder / f"IMG_{len(label_of):04}.{ending}"
            path.write_bytes(content)
            label_of[str(path)] = label
    firsts = []
    right = []
    wrong = []
    num_first = num_answered = num_headed = 0
    with index_of(folder) as index:
        for label in asked:
            results = index.search(label, top=SHOWN)
            is_right = [label_of[hit.item.path] == label for hit in results]
            is_called = [hit.likelihood in CALLED for hit in results]
            num_first += is_right[0]
            num_answered += any(is_right[:FIRST])
            num_headed += results.heading is not None
            firsts.append(is_called[0])
            right += [called for called, fits in zip(is_called, is_right, strict=True) if fits]
            wrong += [called for called, fits in zip(is_called, is_right, strict=True) if not fits]
        weak = [index.search(label, top=1)[0].likelihood not in CALLED for label in without_answer]
    cells = [
        name,
        str(len(label_of)),
        f"{num_answered} of {len(asked)}",
        str(num_first),
        str(num_headed),
        share(firsts),
        share(weak),
        f"{share(right)} of {len(right)}",
        f"{share(wrong)} of {len(wrong)}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def print_much(files: Files, others: Files, num_classes: int, folder: Path) -> None:
    """Three rows of a table: the words for right and wrong files of classes of which the folder has all files."""
    rng = random.Random(num_classes)  # noqa: S311
    labels = rng.sample(sorted(files), num_classes + QUESTIONS)
    asked, without_answer = labels[:num_classes], labels[num_classes:]
    folder.mkdir()
    label_of: dict[str, str] = {}
    for label, contents in [*((label, files[label]) for label in asked), *rng.sample(sorted(others.items()), 150)]:
        for content, ending in contents[: 1 if label in others else None]:
            path = folder / f"IMG_{len(label_of):04}.{ending}"
            path.write_bytes(content)
            label_of[str(path)] = label
    words: dict[str, Counter[str]] = {"right": Counter(), "wrong": Counter(), "without an answer": Counter()}
    with index_of(folder) as index:
        for label in asked:
            for hit in index.search(label, top=PLACES):
                words["right" if label_of[hit.item.path] == label else "wrong"][str(hit.likelihood)] += 1
        for label in without_answer:
            words["without an answer"].update(str(hit.likelihood) for hit in index.search(label, top=PLACES))
    for name, counts in words.items():
        cells = [f"{counts[word] / counts.total():.3f}" for word in (*BETTER, "weak")]
        print(f"| {num_classes}, {len(label_of)} | {name}, {counts.total()} | {' | '.join(cells)} |", flush=True)


def share(values: list[bool]) -> str:
    return f"{sum(values) / len(values):.2f}"


def print_folder(motorcycles: list[tuple[bytes, str]], others: list[tuple[bytes, str]], folder: Path) -> None:
    """Ten photographs of motorcycles beside a folder of this name with 40 others."""
    (folder / "motorcycle").mkdir(parents=True)
    for number, (content, _) in enumerate(others[:40]):
        (folder / "motorcycle" / f"{number}.webp").write_bytes(content)
    for number, (content, _) in enumerate(motorcycles[:10]):
        (folder / f"IMG_{number}.webp").write_bytes(content)
    with index_of(folder) as index:
        names = [Path(hit.item.path).name for hit in index.search("motorcycle", top=15)]
    num_right = sum(name.startswith("IMG_") for name in names)
    print(f"a folder named motorcycle: {num_right} of 10 motorcycles among the first 15")


def print_minimum(cats: list[tuple[bytes, str]], others: list[tuple[bytes, str]], folder: Path) -> None:
    """Twelve files that are named cat, a burst of 60 near copies of the best picture of a cat, and 20 cats."""
    folder.mkdir()
    vectors = onepeace.load("tiny").encode([*[{"image": content} for content, _ in cats], {"text": "cat"}])
    best_first = (vectors[:-1] @ vectors[-1]).argsort(descending=True).tolist()
    cats = [cats[place] for place in best_first]
    for number, (content, _) in enumerate(others[40:52]):
        (folder / f"cat_{number}.webp").write_bytes(content)
    for number, (content, _) in enumerate(others[52:112]):
        (folder / f"OTHER_{number}.webp").write_bytes(content)
    for number, (content, _) in enumerate(cats[1:21]):
        (folder / f"IMG_{number}.webp").write_bytes(content)
    picture = Image.open(io.BytesIO(cats[0][0])).convert("RGB")
    for number in range(60):
        picture.putpixel((number % 8, number // 8), (number, number, number))
        picture.save(folder / f"BURST_{number}.png")
    with index_of(folder) as index:
        for top in (10, 40):
            hits = index.search("cat", top=top, min_match=POSSIBLE)
            counts = Counter(Path(hit.item.path).name.partition("_")[0] for hit in hits)
            print(f"min_match={POSSIBLE}, top={top}: {len(hits)} hits, {dict(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    shards = parser.parse_args().shards
    columns = ["classes", "files", "right in five", "right first", "headed nothing relevant", "first hit called"]
    columns += ["no answer: weak", "right files called", "wrong ones called"]
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, sets in COLLECTIONS.items():
            files = classes_of(shards, [f"val/{a_set}/*.tar.gz" for a_set in sets])
            print_questions(name, files, folder / name)
        print(f"\n| classes, files | hits | {' | '.join(BETTER)} | weak |\n| --- | --- |{' ---: |' * 4}")
        much = classes_of(shards, [f"val/{a_set}/*.tar.gz" for a_set in MUCH])
        others = classes_of(shards, ["val/flickr8k/*.tar.gz"])
        for num_classes in (15, 40, 80):
            print_much(much, others, num_classes, folder / f"much{num_classes}")
        motorcycles = classes_of(shards, ["train/image_text/caltech101-*.tar.gz"])["motorbike"]
        tiny_images = classes_of(shards, ["val/tiny_imagenet/*.tar.gz"])
        cats = tiny_images["tabby cat"] + tiny_images["egyptian cat"]
        photographs = [files[0] for files in others.values()]
        print_folder(motorcycles, photographs, folder / "folder")
        print_minimum(cats, photographs, folder / "minimum")


if __name__ == "__main__":
    main()
