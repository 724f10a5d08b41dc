"""The encoder of an index's queries: its model, opened when it is first needed, or the text branch of that."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onepeace.index.hints import Vocabulary, whole_words
from onepeace.index.verify import Model, check_model, is_name
from onepeace.progress import status
from onepeace.threads import Computed

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch

Inputs: TypeAlias = Sequence[Mapping[str, object]]
"""Texts, pictures and sounds, {modality: value} each."""
Encode: TypeAlias = Callable[["Embedder", Inputs], np.ndarray]
"""A function that gives the unit vectors (n, E) float32 of n inputs by a model; several threads call it at once."""


class Encoder:
    """The model of an index, for any number of threads; an index that is built anew with another one gets another one.

    Args:
        folder, meta: folder and metadata of the index.
        model: None = that of the index, by its name.
        device, dtype: see `onepeace.load`.
        encode: None = the model itself, a thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, str],
        model: Model | None,
        device: str | None,
        dtype: str,
        encode: Encode | None,
    ) -> None:
        self.name = meta["model"]
        self.model_hash = meta["model_hash"]
        self._folder = folder
        self._meta = meta
        self._model = model
        self._device = device
        self._dtype = dtype
        self._encode = encode or self._in_turn
        self.turn = threading.Lock()
        """Held by the thread for which the model computes, unless ``encode`` is given."""
        self._computed = Computed()

    @property
    def embedder(self) -> "Embedder":
        """The model; loaded on first use."""
        return self._computed.get("embedder", self._load)

    def _load(self) -> "Embedder":
        from onepeace.embed.embedder import load

        if self._model is not None and not is_name(self._model):
            return self._model
        check_model(self._folder, self._meta, self._model)
        name = self._model or self.name
        status(f"loading the model {name} ...")
        return load(name, device=self._device, dtype=self._dtype)

    def _in_turn(self, embedder: "Embedder", inputs: Inputs) -> np.ndarray:
        with self.turn:
            return np.asarray(embedder.encode(inputs, progress=False))

    def _text_branch(self) -> "TextBranch | None":
        from onepeace.export.text_branch import TextBranch

        return self._computed.get("text branch", lambda: TextBranch.open(self.model_hash))

    def encode(self, inputs: Inputs, by_branch: bool = False) -> np.ndarray:
        """Unit vectors (n, E) float32.

        Args:
            by_branch: encode texts by the text branch if there is one, without the model (`uses_text_branch`).
        """
        if by_branch and all(given.keys() == {"text"} for given in inputs):
            branch = self._text_branch()
            if branch is not None:
                return np.asarray(branch.encode([str(given["text"]) for given in inputs]))
        return self._encode(self.embedder, inputs)

    def vocabulary(self, by_branch: bool) -> Vocabulary:
        """The whole words of the tokenizer that encodes texts; empty for an encoder of others."""
        return self._computed.get("vocabulary", lambda: self._whole_words(by_branch))

    def _whole_words(self, by_branch: bool) -> Vocabulary:
        pieces = (by_branch and self._text_branch()) or self.embedder.processors.get("text")
        tokenizer = getattr(pieces, "tokenizer", None)
        return {} if tokenizer is None else whole_words(tokenizer)
