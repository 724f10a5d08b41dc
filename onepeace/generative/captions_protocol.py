"""Captions written by a model: similarity to those of people (caption_scores.py), and retrieval of their item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onepeace.config import Config
from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, check_at, encode, results_of
from onepeace.evaluate.protocols.retrieval import recalls
from onepeace.generative.caption_scores import CaptionScores, most_frequent, score_captions
from onepeace.generative.generator import Generator, generator_of
from onepeace.generative.tasks import read_tasks


@dataclass(frozen=True, kw_only=True)
class Captions(EvaluationProtocol):
    """BLEU-4, ROUGE-L and CIDEr-D of one caption for each item; METEOR and SPICE need Java and are left out.

    The document frequencies of CIDEr-D are those of the set's own captions, as in published figures. The chance level
    is measured: each item gets the first caption of the next item.
    """

    needs_writer: ClassVar[bool] = True

    @staticmethod
    def writer(config: Config, module: Any, processors: Mapping[str, Any], tasks: Path) -> Generator:
        return generator_of(config, module, processors, processors["text"].tokenizer, read_tasks(tasks))

    train: Items | None = None
    """Training items with captions, for two baselines without a language model: the most frequent caption of the
    training items, for every item, and the first caption of the most similar training item."""
    at: tuple[int, ...] = ()
    """The k of the recall of items by their captions, among all of the set; empty: not measured. A specific caption
    finds its item; one that would fit many items does not, however well it is written."""
    encoder: str | None = None
    """Name or folder of the model whose vectors are compared; None: the measured model."""

    def __post_init__(self) -> None:
        if self.at:
            check_at(self.at)
        if self.train is not None and self.train.modality != self.modality:
            raise UserError(f"modality is {self.modality!r}, that of train {self.train.modality!r}; they should agree")

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        """Measure the captions that a model writes, and the baselines.

        Args:
            embedder: its method ``caption`` maps a list of items to a list of texts, or of answers with ``text``
                (`onepeace.load_generator`); without it, only the baselines are measured. If vectors are needed and
                `encoder` is None, it also has the methods that `EvaluationProtocol.run` requires.
        """
        writes = hasattr(embedder, "caption")
        if not writes and self.train is None:
            raise UserError("the model cannot write captions; give one that can, or set train, for the baselines")
        samples = self.read(root, "text")
        references = [sample.captions for sample in samples]
        encoder = self._encoder(embedder)
        vectors = np.empty((0, 0))
        if self.at or self.train is not None:
            vectors = self.encode(encoder, samples)
        texts_by_suffix: dict[str, list[str]] = {}
        if writes:
            texts_by_suffix[""] = _captions_of(embedder, self.modality, samples)
        if self.train is not None:
            texts_by_suffix |= _baselines(self.train, root, encoder, vectors)
        guessed = score_captions(_first_captions_of_next(references), references)
        figures: list[Figure] = []
        for suffix, texts in texts_by_suffix.items():
            figures += _figures(suffix, score_captions(texts, references), guessed)
            if self.at:
                figures += self._recalls(suffix, encode(encoder, "text", texts), vectors)
        return figures

    def _recalls(self, suffix: str, queries: NDArray, candidates: NDArray) -> list[Figure]:
        """Recalls of items by their captions, whose vectors are both (n, E)."""
        numbers = range(len(candidates))
        figures = recalls(f"caption to {self.modality}", queries, candidates, numbers, numbers, self.at)
        return [figure._replace(metric=f"{figure.metric}{suffix}") for figure in figures]

    def _encoder(self, embedder: Any) -> Any:
        if self.encoder is None:
            return embedder
        from onepeace.embed.embedder import load

        return load(self.encoder, modalities=[self.modality, "text"])


def _baselines(train: Items, root: Path, encoder: Any, vectors: NDArray) -> dict[str, list[str]]:
    """Captions for items with the vectors (n, E), without a language model: by the suffix of their figures."""
    train_samples = train.read(root, "text")
    most = most_frequent(chain.from_iterable(sample.captions for sample in train_samples))
    similarities = vectors @ train.encode(encoder, train_samples).T
    nearest = similarities.argmax(axis=1)
    return {
        " (most frequent)": [most] * len(vectors),
        " (nearest)": [train_samples[row].captions[0] for row in nearest],
    }


def _first_captions_of_next(references: Sequence[Sequence[str]]) -> list[str]:
    """The first caption of the next item for each item; the last gets that of the first."""
    first_captions = [captions[0] for captions in references]
    return [*first_captions[1:], first_captions[0]]


def _captions_of(writer: Any, modality: str, samples: Sequence[Sample]) -> list[str]:
    answers = results_of(writer.caption, [sample.inputs[modality] for sample in samples])
    texts = []
    for answer in answers:
        texts.append(answer if isinstance(answer, str) else answer.text)
    if len(texts) != len(samples):
        raise ValueError(f"caption returned {len(texts)} texts for {len(samples)} items")
    return texts


def _figures(suffix: str, scores: CaptionScores, guessed: CaptionScores) -> list[Figure]:
    return [
        Figure(f"BLEU-4{suffix}", scores.bleu, guessed.bleu, len(scores.cider)),
        Figure.mean_of(f"ROUGE-L{suffix}", scores.rouge, float(guessed.rouge.mean())),
        Figure.mean_of(f"CIDEr-D{suffix}", scores.cider, float(guessed.cider.mean())),
    ]
