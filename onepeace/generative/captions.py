"""Metrics of written captions (BLEU-4, ROUGE-L and CIDEr-D, without Java), and the protocol that measures a model.

The formulas are those of coco-caption (arXiv 1504.00325), from the package pycocoevalcap; its tokenizer is
reimplemented in Python (ptb_tokenizer.py). Its other two metrics, METEOR and SPICE, are Java programs and not
supported. BLEU-4 and ROUGE-L range from 0 to 1, and CIDEr-D from 0 to 10; papers report them times 100.

CIDEr-D weights n-grams by inverse document frequency, where a document is all references of one item. The documents are
the scored references, as in coco-caption and in published results on a test set. A figure therefore depends on the
whole set, and says little for a few items.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onepeace.config import Config
from onepeace.config.reader import Count
from onepeace.data.sample import Sample
from onepeace.errors import UserError, need
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, encode, results_of
from onepeace.evaluate.ranking import Ranking, groups_of, search
from onepeace.generative.generator import Generator, generator_of
from onepeace.generative.ptb_tokenizer import ptb_words
from onepeace.generative.tasks import read_tasks


@dataclass(frozen=True)
class CaptionScores:
    """Scores of n captions."""

    bleu: float
    """BLEU-4 of all captions together, at corpus level."""
    rouge: NDArray[np.float64]
    """(n,) ROUGE-L."""
    cider: NDArray[np.float64]
    """(n,) CIDEr-D."""


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption for each of n items, where n is at least 2.

    Args:
        candidates: (n) generated captions; an empty one scores 0.
        references: (n) lists of captions by people, with any number of captions per item.
    """
    candidate_words = [_joined_words(caption) for caption in candidates]
    reference_words = []
    for captions in references:
        reference_words.append([_joined_words(caption) for caption in captions])
    rouge = _rouge(candidate_words, reference_words)
    bleu = _bleu(candidate_words, reference_words)
    cider = CiderReward(references)(candidates, references)
    return CaptionScores(bleu=bleu, rouge=rouge, cider=cider)


def _joined_words(caption: str) -> str:
    return " ".join(ptb_words(caption))


def _rouge(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ROUGE-L (n,) of captions of words with a space between them."""
    scorer = need("pycocoevalcap.rouge.rouge", "eval").Rouge()
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        if candidate:
            scores.append(scorer.calc_score([candidate], captions))
        else:
            scores.append(0.0)
    return np.array(scores)


def _bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 at corpus level of captions of words with a space between them."""
    scorer = need("pycocoevalcap.bleu.bleu_scorer", "eval").BleuScorer()
    for candidate, captions in zip(candidates, references, strict=True):
        scorer += (candidate, captions)
    bleu_1_to_4, _ = scorer.compute_score(option="closest")
    return bleu_1_to_4[3]


class CiderReward:
    """CIDEr-D of single captions with the document frequencies of a fixed corpus: the reward of self-critical training
    (arXiv 1612.00563), where a batch is too small to estimate the frequencies.

        reward = CiderReward([captions of each training item], end="<eos>")
        reward(["a dog runs"], [["a dog is running", "the dog runs fast"]])  # (1,)

    Recipes with the term `self_critical` use it.
    """

    def __init__(self, corpus: Iterable[Sequence[str]], *, end: str = "") -> None:
        """Count the documents that have each n-gram, n from 1 to 4.

        Args:
            corpus: one list of captions for each item of the training set, at least 2; read once.
            end: a word that is appended to every caption, also in the corpus. With "<eos>", as in OFA and other code
                for self-critical training, a caption that stops in the middle, "a dog on a", scores lower.
        """
        count_ngrams = need("pycocoevalcap.cider.cider_scorer", "eval").precook
        self.end = [end] if end else []
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.documents = 0
        for captions in corpus:
            self.documents += 1
            document: set[tuple[str, ...]] = set()
            for caption in captions:
                document.update(count_ngrams(self._words(caption)))
            self.counts.update(document)
        if self.documents < 2:
            raise UserError(f"CIDEr-D compares 2 items or more, not {self.documents}")

    def __call__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """CIDEr-D (n,), from 0 to 10, of one caption for each of n lists of references."""
        base: Any = need("pycocoevalcap.cider.cider_scorer", "eval").CiderScorer
        log_documents = np.log(float(self.documents))

        class Scorer(base):
            @property
            def ref_len(self) -> float:
                return log_documents

            @ref_len.setter
            def ref_len(self, log_items: float) -> None:
                """Ignore the log of the number of scored items, which may not be the number of documents."""

        scorer = Scorer()
        for candidate, captions in zip(candidates, references, strict=True):
            scorer += (self._words(candidate), list(map(self._words, captions)))
        scorer.document_frequency = self.counts
        return np.array(scorer.compute_cider(), dtype=np.float64)

    def _words(self, text: str) -> str:
        return " ".join([*ptb_words(text), *self.end])


def most_frequent(captions: Iterable[str]) -> str:
    """The most frequent caption of a corpus, the first of ties: a baseline that ignores the items.

    Captions with the same words count as the same.
    """
    first_caption_by_words: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in captions:
        words = _joined_words(caption)
        counts[words] += 1
        first_caption_by_words.setdefault(words, caption)
    [(most_frequent_words, _)] = counts.most_common(1)
    return first_caption_by_words[most_frequent_words]


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
    at: tuple[Count, ...] = ()
    """The k of the recall of items by their captions, among all of the set; empty: not measured. A specific caption
    finds its item; one that would fit many items does not, however well it is written."""
    encoder: str | None = None
    """Name or folder of the model whose vectors are compared; None: the measured model."""

    def __post_init__(self) -> None:
        if self.train is not None and self.train.modality != self.modality:
            raise UserError(f"modality is {self.modality!r}, that of train {self.train.modality!r}; they should agree")

    def run(self, embedder: Any, root: Path) -> list[Ranking | Figure]:
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
        results: list[Ranking | Figure] = []
        for suffix, texts in texts_by_suffix.items():
            results += _figures(suffix, score_captions(texts, references), guessed)
            if self.at:
                ranking = search(
                    encode(encoder, "text", texts),
                    vectors,
                    [[number] for number in range(len(samples))],
                    metric=f"caption to {self.modality} R@{{k}}{suffix}",
                    at=self.at,
                    groups=groups_of(samples),
                    names=texts,
                )
                results.append(ranking)
        return results

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
