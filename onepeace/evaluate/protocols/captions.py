"""Captions that a model writes: are they what people say (evaluate/captions.py), and do they find their own item?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.captions import CaptionScores, most_frequent, nearest, score_captions
from onepeace.evaluate.intervals import draws, middle
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, check_at, encode
from onepeace.evaluate.protocols.retrieval import Retrieval


@dataclass(frozen=True, kw_only=True)
class Captions(EvaluationProtocol):
    """BLEU-4, ROUGE-L and CIDEr-D of one caption for each item; METEOR and SPICE need Java and are not here.

    The document frequencies of CIDEr-D are those of the set's own captions, as in published figures. What guessing
    reaches is measured: each item with the first caption of the next one.
    """

    needs_writer: ClassVar[bool] = True

    train: Items | None = None
    """Training items with captions, for the baselines."""
    baselines: tuple[Literal["most_frequent", "nearest"], ...] = ()
    """Writers that need no model of language, measured beside it. "most_frequent": the most frequent caption of the
    training items, for every item. "nearest": the first caption of the most similar training item."""
    at: tuple[int, ...] = ()
    """The k of the recalls with which a caption finds its own item among all of the set. Empty: not measured. A caption
    that tells its item from the others is found, one that would fit many is not, however well it is put."""
    encoder: str | None = None
    """Name or folder of the model whose vectors "nearest" and the recalls compare; None: of the measured one."""

    def __post_init__(self) -> None:
        if self.at:
            check_at(self.at)
        if self.baselines and self.train is None:
            raise UserError(f"{', '.join(self.baselines)}: baselines learn from training items; give train")
        if self.train is not None and self.train.modality != self.modality:
            raise UserError(f"modality is {self.modality!r}, that of train {self.train.modality!r}; they should agree")

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        """Measure the captions that a model writes, and the baselines.

        Args:
            embedder: has caption, a function of a list of items that returns as many texts in its order, or answers
                with a text (`onepeace.load_generator`); without it, only the baselines are measured. Unless `encoder`
                is given it has what `EvaluationProtocol.run` asks for, if vectors are needed.
        """
        writes = hasattr(embedder, "caption")
        if not writes and not self.baselines:
            raise UserError(f"a {type(embedder).__name__} writes no captions, and there are no baselines to measure")
        samples = self.read(root, "text")
        references = [sample.captions for sample in samples]
        encoder = self._encoder(embedder)
        needs_vectors = self.at or "nearest" in self.baselines
        items = self.encode(encoder, samples) if needs_vectors else np.empty((len(samples), 0))
        guessed = score_captions([captions[0] for captions in (*references[1:], references[0])], references)
        written = {"": _captions_of(embedder, self.modality, samples)} if writes else {}
        if self.train is not None and self.baselines:
            known = self.train.read(root, "text")
            for name in self.baselines:
                written[f" ({name.replace('_', ' ')})"] = BASELINES[name](self, encoder, items, known)
        figures = []
        for suffix, texts in written.items():
            figures += _figures(suffix, score_captions(texts, references), guessed)
            if self.at:
                figures += self._found(suffix, encode(encoder, "text", texts), items)
        return figures

    def _encoder(self, embedder: Any) -> Any:
        if self.encoder is None:
            return embedder
        from onepeace.embed.embedder import load

        return load(self.encoder, modalities=[self.modality, "text"])

    def _found(self, suffix: str, texts: NDArray, items: NDArray) -> list[Figure]:
        search = Retrieval(modality=self.modality, at=self.at)
        numbers = range(len(items))
        return [
            figure._replace(metric=f"{figure.metric}{suffix}")
            for figure in search.figures(f"caption to {self.modality}", texts, items, numbers, numbers)
        ]


def _captions_of(writer: Any, modality: str, samples: Sequence[Sample]) -> list[str]:
    answers = writer.caption([sample.inputs[modality] for sample in samples])
    texts = [answer if isinstance(answer, str) else answer.text for answer in answers]
    if len(texts) != len(samples):
        raise ValueError(f"caption returned {len(texts)} texts for {len(samples)} items")
    return texts


def _figures(suffix: str, scores: CaptionScores, guessed: CaptionScores) -> list[Figure]:
    each, chances, n = scores.each(), guessed.together(), len(scores.cider)
    figures = []
    for name, value in scores.together().items():
        if name == "BLEU-4":  # of all captions at once, so that it is computed anew for each draw
            spread = middle([scores.bleu(draw) for draw in draws(n)])
            figures.append(Figure(name + suffix, value, chances[name], n, interval=spread))
        else:
            figures.append(Figure(name + suffix, value, chances[name], n, tuple(each[name].tolist())))
    return figures


def _most_frequent(options: Captions, encoder: Any, items: NDArray, known: Sequence[Sample]) -> list[str]:
    return [most_frequent(caption for sample in known for caption in sample.captions)] * len(items)


def _nearest(options: Captions, encoder: Any, items: NDArray, known: Sequence[Sample]) -> list[str]:
    return nearest(items, options.encode(encoder, known), [sample.captions[0] for sample in known])


BASELINES: dict[str, Callable[[Captions, Any, NDArray, Sequence[Sample]], list[str]]] = {
    "most_frequent": _most_frequent,
    "nearest": _nearest,
}
"""Captions for items, given their vectors (n, E) and the training samples."""
