"""What is searched for: words, pictures, sounds and files of the index, each with a weight, as one vector."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UserError
from onepeace.index.ranking import CANCELLED, PartVector, QueryVector
from onepeace.index.store import Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.text_encoder import OnnxTextEncoder

LIKE, VECTOR = "like", "vector"
"""Kinds of parts beside the modalities: a file of the index, and a vector that is given."""


@dataclass(frozen=True)
class Part:
    """One part of a query."""

    kind: str
    """text, image, audio; "like": a path in the index; "vector": an array (E,)."""
    value: Any
    """Words, or a path, bytes, a picture, samples with their rate, as `Embedder.encode` takes them."""
    weight: float = 1.0
    """Negative: away from it."""
    modality: str = "text"
    """Of a vector: what it was made of, for a ranking that treats modalities differently."""


def encode(
    parts: Sequence[Part],
    store: Store,
    load: "Callable[[], Embedder]",
    texts: "Callable[[], OnnxTextEncoder | None]" = lambda: None,
) -> QueryVector:
    """The vector of a query.

    Args:
        parts: one or more.
        store: of the index, for the parts that are like a file of it.
        load: gives the model of the index; called where a part needs it.
        texts: gives what reads words without the model, if there is something; asked first where words are all.

    Raises:
        UserError: nothing to search for, a part that cannot be read, parts that cancel out.
    """
    if not parts:
        raise UserError("nothing to search for; give words, a picture, a sound or a file of the index")
    found = [
        [given] if given is not None else _of_index(part, store)
        for part, given in zip(parts, _of_values(parts, texts, load), strict=True)
    ]
    return QueryVector.of(
        [PartVector(*one, part.weight) for own, part in zip(found, parts, strict=True) for one in own]
    )


def _of_values(
    parts: Sequence[Part], texts: "Callable[[], OnnxTextEncoder | None]", load: "Callable[[], Embedder]"
) -> list[tuple[str, np.ndarray] | None]:
    """Modality and vector of the parts that the model has to read, None of the others; one call for all of them."""
    own = [i for i, part in enumerate(parts) if part.kind not in (LIKE, VECTOR)]
    found: list[tuple[str, np.ndarray] | None] = [None] * len(parts)
    if not own:
        return found
    only_words = all(parts[i].kind == "text" and isinstance(parts[i].value, str) for i in own)
    encoder = texts() if only_words else None
    if encoder is not None:
        vectors = encoder.encode([parts[i].value for i in own])
    else:
        items = [{parts[i].kind: parts[i].value} for i in own]
        vectors = np.asarray(load().encode(items, progress=False, output="numpy"))
    for i, vector in zip(own, vectors, strict=True):
        found[i] = (parts[i].kind, vector)
    return found


def _of_index(part: Part, store: Store) -> list[tuple[str, np.ndarray]]:
    """Modality and vector of a file in the index, the mean of its vectors, of a video that of its pictures and that of
    its sound; or of a vector that is given."""
    if part.kind == VECTOR:
        vector = np.asarray(part.value, np.float32)
        if (
            vector.shape != (store.embed_dim,)
            or not np.isfinite(vector).all()
            or not np.linalg.norm(vector) > CANCELLED
        ):
            raise UserError(
                f"a vector to search for has {store.embed_dim} finite numbers, not all 0; got {vector.shape}"
            )
        return [(part.modality, vector / np.linalg.norm(vector))]
    path = os.fspath(part.value)
    names = [os.fsencode(name) for name in dict.fromkeys([path, os.path.abspath(path)])]
    marks = ", ".join("?" * len(names))
    item = next(store.items(f"path IN ({marks}) AND problem IS NULL", names), None)
    if item is None or item.id is None:
        raise UserError(f"{path}: not in the index {store.folder}; give it as a picture or sound, or add it first")
    modalities = [span.modality for _, span in store.spans(item.id)]
    vectors, found = store.vectors(item.id), []
    for modality in dict.fromkeys(modalities):
        mean = vectors[[key == modality for key in modalities]].mean(axis=0, dtype=np.float64)
        if not np.linalg.norm(mean) > CANCELLED:
            raise UserError(f"{path}: its vectors cancel out; search for a part of it")
        found.append((modality, (mean / np.linalg.norm(mean)).astype(np.float32)))
    return found
