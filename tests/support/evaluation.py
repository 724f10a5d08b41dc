"""Embedders whose vectors are known, recipes of the sets in tests/evaluate/conftest.py, and what measures them."""

import json

import torch

from onepeace.evaluate.run import read_recipe, run

WORDS = ("dog", "cat", "acorn", "rain")

RECIPE = """
sets:
  photos: {protocol: retrieval, modality: image, shards: "val/photos/*.tar.gz", at: [1]}
  drawings: {protocol: retrieval, modality: image, shards: "val/drawings/*.tar.gz", texts: names, at: [1, 10]}
  sounds:
    {protocol: zero_shot, modality: audio, shards: "val/sounds/*.tar.gz", classes: val/sounds/classes.json, at: [1, 3]}
"""

SAME_CLASS = """
sets:
  both:
    protocol: same_class
    modality: audio
    shards: "val/sounds/*.tar.gz"
    other: {modality: image, shards: "val/pictures/*.tar.gz"}
    at: [2]
    matches: {dog: [pug, terrier], cat: [tabby]}
"""


class KnownEmbedder:
    """A text or the bytes of a file mean the words that occur in them; `shift` makes it mistake each for the next."""

    dtype = torch.float32

    def __init__(self, shift=0, modalities=("text", "image", "audio")):
        self.shift = shift
        self.modalities = modalities
        self.texts = []
        """All texts that were encoded."""

    def encode_text(self, items):
        self.texts += items
        return self._encode(items, 0)

    def encode_image(self, items):
        return self._encode([item.decode() for item in items], self.shift)

    encode_audio = encode_image

    def _encode(self, items, shift):
        vectors = torch.zeros(len(items), len(WORDS))
        for row, item in zip(vectors, items, strict=True):
            for i, word in enumerate(WORDS):
                row[(i + shift) % len(WORDS)] += float(word in item)
        return torch.nn.functional.normalize(vectors, dim=1)


class EqualEmbedder(KnownEmbedder):
    """Everything is the same to it, and files need not be text."""

    def encode_text(self, items):
        return torch.ones(len(items), 4) / 2

    encode_image = encode_audio = encode_text


def described(content, *captions, **fields):
    """A sample of a shard: the content of a file, and what the .json beside it says."""
    if captions:
        fields["captions"] = captions
    return content, fields


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def table_lines(text):
    """The lines of a table, with one space between two columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def write_recipe(root, text):
    path = root / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def recipe_of(root, text, *overrides):
    """The recipe with this text, on the shards below `root`."""
    return read_recipe(write_recipe(root, text), [f"data.root={root}", *overrides])


def measure(embedder, recipe):
    """The rows of all sets."""
    return list(run(embedder, recipe.sets, recipe.data.folder()))


def values(rows):
    return {(row.set, row.metric): row.value for row in rows}


def means(scores):
    """The figures of captions of the whole set, by name."""
    return {
        "BLEU-4": scores.bleu,
        "ROUGE-L": float(scores.rouge.mean()),
        "CIDEr-D": float(scores.cider.mean()),
    }


def worst_order(scores, is_right):
    """The candidates from the highest score down, as a plain sort; among equal scores the wrong ones come first."""
    return sorted(range(len(scores)), key=lambda row: (-scores[row], is_right[row]))
