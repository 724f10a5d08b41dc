"""Find pictures and sounds by words, with onnxruntime, tokenizers and numpy alone."""

import json
import re

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

with open("exported/export.json", encoding="utf-8") as file:
    branch = json.load(file)["branches"]["text"]
rules = branch["preprocessing"]
tokenizer = Tokenizer.from_file("exported/tokenizer.json")
session = InferenceSession(f"exported/{branch['file']}")


def ids_of(text):
    """The token ids of a text, with that of its end."""
    if rules["lower"]:
        text = text.lower()
    if rules["clean"]:
        text = re.sub(r"\s{2,}|\t", " ", text.lstrip(",.!?*#:;~")).rstrip("\n").strip(" ")
    *ids, end = tokenizer.encode(" " * rules["prefix_space"] + text).ids
    return [*ids[: rules["max_tokens"]], end]


def encode(texts):
    """(n, E) unit vectors of n texts."""
    rows = [ids_of(text) for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), 1)  # 1 is padding
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return session.run(None, {"ids": ids, "lengths": lengths})[0]


files = np.load("vectors.npz")
scores = encode(["a dog barking"]) @ files["vectors"].T
for i in np.argsort(-scores[0])[:3]:
    print(f"{scores[0, i]:.3f}  {files['paths'][i]}")
