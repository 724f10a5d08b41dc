"""Known items found by their words, and what the words cost: the table of "Words" in search.md.

``python docs/results/words.py SHARDS`` makes a collection of the validation shards below SHARDS (val/flickr8k, ...)
in a temporary folder, indexes it with the bundled model, and asks for files by words of their names, captions and
keywords.
"""

import argparse
import csv
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from xml.sax.saxutils import escape

from PIL import Image

from onepeace.index import Index, build
from onepeace.index.items import Words
from onepeace.index.words import words_of_query

SETS = {"openclipart": 187, "flickr8k": 200, "fashion": 150, "caltech101": 160, "sports": 80, "sounds": 160}
"""Number of samples of each set: the first three have names, captions and keywords, the others labels."""
QUERIES = {"openclipart": 70, "flickr8k": 70, "fashion": 60}
NAMES = {"openclipart": "names", "flickr8k": "captions", "fashion": "keywords"}
LABELS = 45
"""Number of everyday queries, which are labels."""
CLASSES = ("caltech101", "tiny_imagenet", "sports", "pacs")
"""Sets with pictures of classes."""
FOLDERS = 12
RIGHT = 10
"""Number of classes that a folder is named after, and of pictures of each elsewhere."""
CAPTIONED = 800
"""Number of photographs with a caption of common words."""
PAIRS = 5
"""Number of builds with and without words."""
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


class Sample(NamedTuple):
    """A file of the collection."""

    path: Path
    text: str
    """Its title, caption or keywords; the label of an everyday one."""


def samples_of(shard: Path, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Content and description of the first samples of a shard."""
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as archive:
        for member in archive:
            key, _, ending = member.name.rpartition(".")
            members.setdefault(key, {})[ending] = archive.extractfile(member).read()  # type: ignore[union-attr]
    samples = []
    for files in [*members.values()][:count]:
        media = next(content for ending, content in files.items() if ending not in ("txt", "json"))
        samples.append((media, json.loads(files["json"])))
    return samples


def collect(shards: Path, folder: Path) -> dict[str, list[Sample]]:
    """Write the collection; names that say nothing are as cameras write them."""
    collection: dict[str, list[Sample]] = {}
    captions = []
    for name, count in SETS.items():
        (shard,) = (shards / "val" / name).glob("*.tar.gz")
        collection[name] = []
        for i, (media, description) in enumerate(samples_of(shard, count)):
            text = description["captions"][0]
            ending = "ogg" if name == "sounds" else "webp"
            path = folder / f"{name[:3].upper()}_{i:04}.{ending}"
            if name == "openclipart":
                path = folder / "drawings" / f"{text.title().replace(' ', '' if i % 2 else '_')[:80]}.webp"
            path.parent.mkdir(exist_ok=True)
            if name == "flickr8k":
                captions.append({"file": path.name, "caption": text})
            if name == "fashion":
                keywords = "".join(f"<rdf:li>{escape(word)}</rdf:li>" for word in text.split())
                path = path.with_suffix(".jpg")
                Image.open(io.BytesIO(media)).convert("RGB").save(path, xmp=XMP.format(keywords).encode())
            else:
                path.write_bytes(media)
            if name not in QUERIES:
                text = description["label"]
            collection[name].append(Sample(path, text))
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "caption"])
        writer.writeheader()
        writer.writerows(captions)
    return collection


def known_items(collection: dict[str, list[Sample]]) -> dict[str, list[tuple[str, Path]]]:
    """Queries of each set, with the file that each is for: the three rarest words of what is said of it."""
    counts = Counter(word for name in QUERIES for sample in collection[name] for word in {*words_of_text(sample.text)})
    queries = {}
    for name, count in QUERIES.items():
        samples = random.Random(0).sample(collection[name], min(count, len(collection[name])))  # noqa: S311
        queries[name] = []
        for sample in samples:
            words = words_of_text(sample.text)
            rarest = sorted(words, key=counts.__getitem__)[:3]
            queries[name].append((" ".join(word for word in words if word in rarest), sample.path))
    return queries


def words_of_text(text: str) -> list[str]:
    """Words of a title or caption, without small ones, of whatever length it is."""
    words: list[str] = []
    for word in text.lower().split():
        words += [part for part in words_of_query(word) if part not in words]
    return words


def place_of(index: Index, query: str, path: Path) -> int:
    """Place of a file among the hits, from 0; 100 for none among the first 100."""
    paths = [hit.item.path for hit in index.search(query, top=100, collapse=False)]
    return paths.index(str(path)) if str(path) in paths else 100


def everyday(index: Index, collection: dict[str, list[Sample]]) -> tuple[int, int]:
    """Number of labels with a right file first, and among the first five: of this label, or with its words."""
    texts = {str(sample.path): sample.text for name in SETS for sample in collection[name]}
    labels = {sample.text for name in SETS if name not in QUERIES for sample in collection[name]}
    queries = random.Random(0).sample(sorted(labels), LABELS)  # noqa: S311
    first = first_five = 0
    for query in queries:
        words = {*words_of_text(query)}
        hits = index.search(query, top=5)
        right = [words.issubset(words_of_text(texts.get(hit.item.path, ""))) for hit in hits]
        first += right[0]
        first_five += any(right)
    return first, first_five


def no_words(query: str) -> list[str]:
    return []


def without_words() -> Any:
    """A patch by which no query has words."""
    return patch("onepeace.index.words.words_of_query", no_words)


def print_queries(index: Index, collection: dict[str, list[Sample]]) -> None:
    print("| words of | queries | with words | by meaning alone |\n| --- | ---: | ---: | ---: |")
    not_first = []
    for name, queries in known_items(collection).items():
        places = [place_of(index, query, path) for query, path in queries]
        with without_words():
            by_meaning = [place_of(index, query, path) for query, path in queries]
        print(f"| {NAMES[name]} | {len(queries)} | {places.count(0)} | {by_meaning.count(0)} |")
        for (query, _), place in zip(queries, places, strict=True):
            if place > 0:
                not_first.append(f"{query}: {place + 1}")
    first, first_five = everyday(index, collection)
    with without_words():
        first_by_meaning, first_five_by_meaning = everyday(index, collection)
    print(f"| everyday queries: first | {LABELS} | {first} | {first_by_meaning} |")
    print(f"| everyday queries: among five | {LABELS} | {first_five} | {first_five_by_meaning} |")
    print("not first:", *not_first, sep="\n    ")


def print_common(shards: Path, folder: Path) -> None:
    """Right files among the first hits for classes, after each of which a folder of 40 other pictures is named."""
    by_label: dict[str, list[bytes]] = defaultdict(list)
    for name in CLASSES:
        for shard in sorted((shards / "val" / name).glob("*.tar.gz")):
            for media, description in samples_of(shard, 10_000):
                by_label[description["label"].lower()].append(media)
    labels = [label for label in sorted(by_label) if len(by_label[label]) >= RIGHT and label.isalpha()]
    rng = random.Random(0)  # noqa: S311
    chosen = rng.sample(labels, FOLDERS)
    others = [media for label in labels if label not in chosen for media in by_label[label]]
    rng.shuffle(others)
    contents = {folder / f"other{number}.jpg": others.pop() for number in range(300)}
    right: dict[str, set[str]] = {}
    for number, label in enumerate(chosen):
        (folder / label).mkdir(parents=True)
        named = {folder / f"IMG_{number}_{place}.jpg": media for place, media in enumerate(by_label[label][:RIGHT])}
        right[label] = {*map(str, named)}
        contents |= named | {folder / label / f"{place}.jpg": others.pop() for place in range(40)}
    for path, media in contents.items():
        path.write_bytes(media)
    build(folder / "index", [folder], progress=False)
    num_first = num_found = 0
    with Index.open(folder / "index") as index:
        for label in chosen:
            is_right = [hit.item.path in right[label] for hit in index.search(label, top=15, collapse=False)]
            num_first += is_right[0]
            num_found += sum(is_right)
    print(f"common words: {num_found} of {FOLDERS * RIGHT} right ones among the first 15, {num_first} first")


def print_captions(shards: Path, folder: Path) -> None:
    """Files that have a common word in any of their five captions, among the first hits; the index has one caption."""
    captions: dict[str, list[str]] = {}
    folder.mkdir()
    for shard in sorted((shards / "val" / "flickr8k").glob("*.tar.gz")):
        for media, description in samples_of(shard, CAPTIONED - len(captions)):
            path = folder / f"IMG_{len(captions):04}.webp"
            path.write_bytes(media)
            captions[str(path)] = description["captions"]
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        writer.writerows([Path(path).name, first] for path, (first, *_) in captions.items())
    build(folder / "index", [folder, folder / "captions.csv"], progress=False)
    counts = Counter(word for first, *_ in captions.values() for word in {*words_of_text(first)})
    common = sorted(word for word, count in counts.items() if 20 < count <= 120)
    queries = random.Random(0).sample(common, 40)  # noqa: S311
    num_right = 0
    with Index.open(folder / "index") as index:
        for query in queries:
            for hit in index.search(query, top=15, collapse=False):
                num_right += query in words_of_text(" ".join(captions[hit.item.path]))
    print(f"common words of captions: {num_right} of {len(queries) * 15} hits have them in one of their captions")


def print_cost(files: list[Path], folder: Path) -> None:
    """Processor time of builds with words over those without, interleaved."""
    embedder = build(folder / "warm.index", files[:8], progress=False).embedder
    ratios = []
    for number in range(PAIRS):
        seconds = []
        for has_words in (True, False):
            nothing = patch("onepeace.index.record.words_of", lambda *_: Words())
            untagged = patch("onepeace.files.metadata.tags_of_picture", lambda _: {})
            start = time.process_time()
            if has_words:
                build(folder / f"{number}.index", files, embedder, progress=False)
            else:
                with nothing, untagged:
                    build(folder / f"{number}-without.index", files, embedder, progress=False)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    print(f"build with words / without, processor time: median {statistics.median(ratios):.3f} of {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        collection = collect(arguments.shards, folder)
        build(Path(temporary) / "index", [folder, folder / "captions.csv"], progress=False)
        with Index.open(Path(temporary) / "index") as index:
            print_queries(index, collection)
        print_common(arguments.shards, Path(temporary) / "common")
        print_captions(arguments.shards, Path(temporary) / "captions")
        print_cost([sample.path for sample in (*collection["fashion"], *collection["openclipart"])], Path(temporary))


if __name__ == "__main__":
    main()
