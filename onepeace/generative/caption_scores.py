"""Caption metrics: BLEU-4, ROUGE-L and CIDEr-D, without Java.

The formulas are those of coco-caption (arXiv 1504.00325), from the package pycocoevalcap; its tokenizer is
reimplemented in Python (ptb_tokenizer.py). Its other two metrics, METEOR and SPICE, are Java programs and not
supported. BLEU-4 and ROUGE-L range from 0 to 1, and CIDEr-D from 0 to 10; papers report them times 100.

CIDEr-D weights n-grams by inverse document frequency, where a document is all references of one item. The documents are
the scored references, as in coco-caption and in published results on a test set. A figure therefore depends on the
whole set, and says little for a few items.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, need
from onepeace.generative.ptb_tokenizer import ptb_words


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

    The advantage of one of k captions of an item is its reward minus the mean of the other k - 1 (OFA, with k = 5).
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
