"""Caption metrics: BLEU-4, ROUGE-L and CIDEr-D, without Java.

The formulas are those of coco-caption (arXiv 1504.00325), from the package pycocoevalcap; the words are those of its
tokenizer, written again in Python (ptb_tokenizer.py). Its other two figures, METEOR and SPICE, are Java programs and
are not here. All figures run from 0 to 1, but CIDEr-D from 0 to 10; papers print them times 100.

CIDEr-D weighs n-grams by how few documents have them, a document being all references of one item. The documents are
the references that are scored: so does coco-caption, and so are the published figures of a test set. A figure therefore
depends on the whole set, and one of a few items says little.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, need
from onepeace.evaluate.ptb_tokenizer import ptb_words


@dataclass(frozen=True)
class CaptionScores:
    """The figures of n captions."""

    bleu: float
    """BLEU-4 of all captions as if they were one."""
    rouge: NDArray[np.float64]
    """(n,) ROUGE-L."""
    cider: NDArray[np.float64]
    """(n,) CIDEr-D."""


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Measure one caption for each of n items, of which there are at least 2.

    Args:
        candidates: (n) written captions; an empty one is worth 0.
        references: (n) lists of captions by people, as many as there are of each item.
    """
    written = [" ".join(ptb_words(caption)) for caption in candidates]
    known = [[" ".join(ptb_words(caption)) for caption in captions] for captions in references]
    rouge = need("pycocoevalcap.rouge.rouge", "eval").Rouge()
    rouges = [rouge.calc_score([one], several) if one else 0.0 for one, several in zip(written, known, strict=True)]
    bleu = need("pycocoevalcap.bleu.bleu_scorer", "eval").BleuScorer()
    for pair in zip(written, known, strict=True):
        bleu += pair
    figures = bleu.compute_score(option="closest")[0]
    return CaptionScores(figures[3], np.array(rouges), CiderReward(references)(candidates, references))


class CiderReward:
    """CIDEr-D of single captions with the document frequencies of a fixed corpus: the reward of self-critical training
    (arXiv 1612.00563), where a batch is too small to have frequencies of its own.

        reward = CiderReward([captions of each training item], end="<eos>")
        reward(["a dog runs"], [["a dog is running", "the dog runs fast"]])  # (1,)

    The advantage of one of k captions of an item is its reward less the mean of the other k - 1 (OFA, with k = 5).
    """

    def __init__(self, corpus: Iterable[Sequence[str]], *, end: str = "") -> None:
        """Count the documents that have each n-gram, n from 1 to 4.

        Args:
            corpus: one list of captions for each item of the training set, at least 2; read once.
            end: a word that is put after every caption, of the corpus too. With "<eos>", as OFA and other code for
                self-critical training have it, a caption that stops in the middle, "a dog on a", is worth less.
        """
        ngrams = need("pycocoevalcap.cider.cider_scorer", "eval").precook
        self.end = [end] if end else []
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.documents = 0
        for captions in corpus:
            self.documents += 1
            self.counts.update({ngram for caption in captions for ngram in ngrams(self._words(caption))})
        if self.documents < 2:
            raise UserError(f"CIDEr-D compares 2 items or more, and this is {self.documents}")

    def __call__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """CIDEr-D (n,), from 0 to 10, of one caption for each of n lists of references."""
        base: Any = need("pycocoevalcap.cider.cider_scorer", "eval").CiderScorer
        size = np.log(float(self.documents))

        class Scorer(base):
            # The scorer sets it to the logarithm of the number of items it scores, which need not be the documents.
            ref_len = property(lambda _: size, lambda _, __: None)

        scorer = Scorer()
        for candidate, captions in zip(candidates, references, strict=True):
            scorer += self._words(candidate), [self._words(caption) for caption in captions]
        scorer.document_frequency = self.counts
        return np.array(scorer.compute_cider(), dtype=np.float64)

    def _words(self, text: str) -> str:
        return " ".join([*ptb_words(text), *self.end])


def most_frequent(captions: Iterable[str]) -> str:
    """The caption that a corpus has most often, the first of equals: what a writer says who looks at nothing.

    Captions with the same words are the same.
    """
    texts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in captions:
        counts[words := " ".join(ptb_words(caption))] += 1
        texts.setdefault(words, caption)
    return texts[counts.most_common(1)[0][0]]
