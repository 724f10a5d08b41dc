"""The match of a file for a query: whether it is likely to be right; and the order of a list of all kinds of files.

A cosine alone does not show this: its scale depends on the model, the modalities of query and file, and the size and
content of the folder. So it is compared with the cosines of unrelated queries in the same index, which is scored in
advance against a few hundred of them: generic words and sentences in the package, and pictures and sounds, whose
vectors are stored with a model (`CALIBRATION`). Nothing is fitted (docs/results/match.md).

* z: the standard deviations of a cosine above the mean of unrelated queries against files of the same modality.
* match: the share of unrelated queries whose best hit of the same modality scores lower. If unrelated queries rarely
  find a modality first, its best hits are low by nature (a few texts among many pictures, or sounds if one searches by
  a picture), and a chance hit would look rare. So the match is then mixed, by how rarely they do, with the share of
  unrelated queries whose best hit of the leading modality, the one they find first most often, has a lower z.

Both depend on the query, the file and the index, but not on filters and other hits. A list is ordered by the match as a
word, then as a number; weak files by z (`worth`).

The match compares a file with the best hits of unrelated queries, so of a thing that a folder has much of, many files
are weak. Where `SEVERAL` of the files of a kind that were searched are likely, a weak one of it that would be possible
if it were `MARGIN` nearer is called alike: more of the same.

A query of several parts is q = sum of w_p v_p. Unrelated queries of this form are not scored; their distribution is
derived from those of the parts. Their mean cosine is the sum of w_p r_p, with r_p the mean of part p. An excess e_p
over the mean for each part becomes sqrt(sum of w_p w_q e_p e_q a_pq) for the sum, as standard deviations add up, with
a_pq the cosine of two parts after subtracting the centres of their banks. This is applied to each quantile.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import cache_folder, make_folder, write_atomic
from onepeace.index.database import Store
from onepeace.index.vectors import read
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.index.index import Index
    from onepeace.index.query import EncodedPart, QueryVector

LIKELY = 0.95
"""Match from which a hit is likely relevant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 0.7
"""Match from which a hit is possibly relevant: 7 of 10 unrelated queries find nothing as near."""
RELEVANT = 0.2
"""Match of the best hit below which nothing relevant was found: 4 of 5 unrelated queries do better."""
MARGIN = 0.5
"""Standard deviations of z that a file alike is at most below a possible one."""
SEVERAL = 2
"""Number of likely files of a kind from which there may be files alike."""
WEAK = "weak"
WORDS = (WEAK, "possible", "likely")
MODALITIES = ("image", "audio", "text")
"""Modalities of items that queries are scored against."""
SMALLEST = 1e-8
"""Lower bound of divisors and variances."""
FORMAT = "3"
"""Version of the files of `Banks.to_bytes`."""
SCORES = ("best", "squares", "sums", "counts")
"""Attributes of `Banks` that an index stores."""
BLOCK = 1 << 14
"""Items compared at once: bounds the memory."""
CALIBRATION = "calibration.safetensors"
"""Name of the calibration file in a model folder."""
TEXTS = {
    "word": "names.txt",
    "word/audio": "sounds.txt",
    "sentence": "sentences.txt",
    "sentence/audio": "sound_sentences.txt",
}
"""Name of the file with the texts of each bank, one per line.

Sounds have their own texts: most things make no sound, so a query for a sound outscores their names too easily."""
KEPT = {"image": 0.7, "audio": 0.2}
"""Share of the generic files kept per bank of a model folder: the files least similar to all others.

A file that resembles other generic files resembles files in many folders, where it is not an unrelated query. There are
fewer kinds of sounds than of pictures, so fewer sounds are kept."""
DRAWN = 1000
"""Number of pictures, and of sounds, to select a bank from."""
FEWEST = 100
"""Least number of them: fewer have no generic files among them."""


class BankScores(NamedTuple):
    """Cosines of the n queries of a bank with the items of one modality in an index."""

    best: NDArray
    """(n,) highest cosine of each query, ascending."""
    mean: float
    deviation: float
    centre: NDArray
    """(E,) mean of the query vectors."""


class Banks:
    """Vectors of unrelated queries by bank, and their scores in one index.

    Attributes:
        vectors: bank -> (n, E) float32 unit rows; "BANK/MODALITY" replaces "BANK" for items of that modality.
        model: hash of the model that encoded them.
        best: (N, M) float32, best cosine of each query, bank after bank, with the items of each modality; -inf if none.
        squares: (N, M) float64, sum of the squares of the cosines with all these items.
        sums: (M, E) float64, sum of the items' vectors.
        counts: (M,) int64, number of items.
    """

    def __init__(self, vectors: Mapping[str, NDArray], model: str = "") -> None:
        self.vectors = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
        self.model = model
        self._rows: dict[str, slice] = {}  # of each bank in `_queries`
        first = 0
        for name, bank_vectors in self.vectors.items():
            self._rows[name] = slice(first, first + len(bank_vectors))
            first += len(bank_vectors)
        self._queries = np.empty((0, 0), np.float32)
        if vectors:
            self._queries = np.concatenate(list(self.vectors.values()))
        num_queries, embed_dim = self._queries.shape
        self.best = np.full((num_queries, len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros((num_queries, len(MODALITIES)))
        self.sums = np.zeros((len(MODALITIES), embed_dim))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._bank_scores: dict[tuple[str, str], BankScores] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str] | NDArray) -> None:
        """Add items: (n, E) unit rows and their modalities. Modalities that are not built in have no scores.

        Costs 2 N n E operations, about a second for 100,000 items of 256 dimensions.
        """
        self._bank_scores.clear()
        if not len(self._queries):
            return
        modality_of_row = np.asarray(modalities)
        for code, modality in enumerate(MODALITIES):
            rows = np.flatnonzero(modality_of_row == modality)
            for first in range(0, len(rows), BLOCK):
                block = np.asarray(vectors[rows[first : first + BLOCK]], np.float32)
                cosines = self._queries @ block.T
                best_of_block = cosines.max(axis=1)
                self.best[:, code] = np.maximum(self.best[:, code], best_of_block)
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += block.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(block)

    def scores(self, bank: str, modality: str) -> BankScores | None:
        """Scores of a bank against the items of a modality; None if there are no such queries or items."""
        rows = self._rows.get(f"{bank}/{modality}", self._rows.get(bank))
        if rows is None or modality not in MODALITIES:
            return None
        code = MODALITIES.index(modality)
        count = int(self.counts[code])
        if not count:
            return None
        if (bank, modality) not in self._bank_scores:
            queries = self._queries[rows]
            mean_item = (self.sums[code] / count).astype(np.float32)
            mean = float((queries @ mean_item).mean())
            variance = float(self.squares[rows, code].mean()) / count - mean**2
            self._bank_scores[bank, modality] = BankScores(
                best=np.sort(self.best[rows, code]),
                mean=mean,
                deviation=max(variance, SMALLEST) ** 0.5,
                centre=queries.mean(axis=0),
            )
        return self._bank_scores[bank, modality]

    @classmethod
    def load(cls, content: bytes | None, scores: bytes | None = None) -> "Banks":
        """Load the output of `to_bytes`, and that of `scores_to_bytes` for the same queries; None = none.

        Raises:
            UserError: the content is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if content is None:
            return cls({})
        try:
            stored = load(content)
            header_size = int.from_bytes(content[:8], "little")
            about: dict[str, str] = json.loads(content[8 : 8 + header_size])["__metadata__"]
            vectors = {name: stored[name] for name in json.loads(about["names"])}
            is_intact = about.pop("digest") == _digest(vectors, about)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the calibration is damaged, cut off or of another version ({one_line(error)})") from error
        if not is_intact or about["format"] != FORMAT:
            raise UserError("the calibration is damaged or of another version")
        banks = cls(vectors, about["model"])
        if scores is not None:
            for name, values in load(scores).items():
                setattr(banks, name, values.copy())
        return banks

    def to_bytes(self) -> bytes:
        """Content of a calibration file: the vectors in float16, the hash of the model, and a digest."""
        from safetensors.numpy import save

        vectors = {name: np.ascontiguousarray(rows, np.float16) for name, rows in self.vectors.items()}
        about = {"model": self.model, "format": FORMAT, "names": json.dumps(list(vectors))}
        return save(vectors, {**about, "digest": _digest(vectors, about)})

    def scores_to_bytes(self) -> bytes:
        """Scores of the queries in one index, for `load`."""
        from safetensors.numpy import save

        return save({name: getattr(self, name) for name in SCORES})


def _digest(arrays: Mapping[str, NDArray], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def banks_of(store: Store) -> Banks:
    """Unrelated queries of the model of an index, with their scores against all of its vectors.

    The stored scores cover the vectors up to the state meta["scored"]. Later vectors are added; after removals, which
    may have deleted a best hit, all vectors are scored again.
    """
    last, _, removed = store.meta.get("scored", "").partition("-")
    is_valid = removed == store.meta["removed"]
    banks = Banks.load(store.blob("calibration"), store.blob("best") if is_valid else None)
    has_scores = is_valid and banks.counts.any()
    for rows, vectors in read(store, int(last) if has_scores else 0):
        banks.add(vectors, np.array(store.modalities)[rows["modality"]])
    return banks


def texts_of(bank: str) -> list[str]:
    """Texts of a bank, which are part of the package."""
    file = resources.files("onepeace.index") / TEXTS[bank]
    return file.read_text(encoding="utf-8").splitlines()


def calibration_by_words(load: Callable[[], Any], model: str) -> bytes:
    """Content of a calibration file with the text banks alone, which a model encodes once; the cache folder keeps them.

    Args:
        load: returns the model, an `Embedder` or a pool of them; called only if the banks are not kept.
        model: hash of the model.
    """
    all_texts = [text for bank in TEXTS for text in texts_of(bank)]
    digest = hashlib.sha256("\n".join(all_texts).encode()).hexdigest()
    path = cache_folder() / "banks" / f"{model}-{digest[:8]}.safetensors"
    with suppress(OSError, UserError):  # there is none, or it is damaged
        content = path.read_bytes()
        Banks.load(content)
        return content
    embedder = load()
    status("encoding the generic words that the match compares with, once for this model ...")
    vectors = {bank: np.asarray(embedder.encode_text(texts_of(bank))) for bank in TEXTS}
    content = Banks(vectors, model).to_bytes()
    with suppress(OSError):  # it only saves time
        make_folder(path.parent)
        with write_atomic(path) as temporary:
            temporary.write_bytes(content)
    return content


def read_calibration(folder: Path, model: str) -> bytes | None:
    """Content of the calibration file of a model folder; None if it does not exist or belongs to another model.

    Args:
        model: hash of the model (onepeace/hub/resolve.py).

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        return content if Banks.load(content).model == model else None
    except (UserError, OSError) as error:
        raise UserError(f"{one_line(error)}; put the original in its place, or delete it", where=path) from error


def calibrate(index: "Index") -> Banks:
    """The banks of an index's model from generic words and from pictures and sounds of the index (deterministic).

    The `Index` is one of generic files of many kinds. ``calibrate(index).to_bytes()`` is the content of the file
    `CALIBRATION` in the folder of the model; indexes that are built later have a match for pictures and sounds as
    queries.

    Raises:
        UserError: the index has too few pictures, or too few sounds.
    """
    with index.reading() as state:
        vectors = {name: rows for name, rows in state.banks.vectors.items() if name in TEXTS}
        items, means = state.means()
        model_hash = state.model_hash
    kinds = np.array([item.kind for item in items])
    random = np.random.default_rng(0)
    for modality, share in KEPT.items():
        rows = np.flatnonzero(kinds == modality)
        if 0 < len(rows) < FEWEST:
            raise UserError(f"{len(rows)} {modality} files; {FEWEST} generic ones are needed", where=index.folder)
        if len(rows):
            drawn = means[random.permutation(rows)[:DRAWN]]
            cosines = drawn @ drawn.T
            np.fill_diagonal(cosines, -1)
            farthest = np.argsort(cosines.max(axis=1), kind="stable")
            kept = farthest[: round(share * len(drawn))]
            vectors[modality] = drawn[np.sort(kept)]
    if vectors.keys() <= TEXTS.keys():
        raise UserError(f"no picture or sound; {FEWEST} generic ones are needed", where=index.folder)
    return Banks(vectors, model_hash)


def level(matches: NDArray) -> NDArray:
    """Place of each match in `WORDS`."""
    return np.add(matches >= POSSIBLE, matches >= LIKELY, dtype=np.int8)


def worth(matches: NDArray, z_scores: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Keys by which hits are compared: by level; likely and possible ones by the match, then by z.

    Weak ones are compared by z: what their matches say is mostly which kind of file they are of.

    Returns:
        The last key first, as `numpy.lexsort` takes them.
    """
    levels = level(matches)
    return z_scores, np.where(levels > 0, matches, 0.0), levels


class Scale:
    """What unrelated queries of the same form as a query find in an index."""

    def __init__(self, banks: Banks, query: "QueryVector") -> None:
        self._unrelated: dict[str, BankScores] = {}  # by modality of the items
        for modality in MODALITIES:
            scores_or_none = [banks.scores(part.bank, modality) for part in query.parts]
            scores_of_parts = [scores for scores in scores_or_none if scores is not None]
            if len(scores_of_parts) == len(query.parts):
                self._unrelated[modality] = _scores_of_sum(query.parts, scores_of_parts)
        self._length = query.length
        self._best_z: dict[str, NDArray] = {}
        for modality, unrelated in self._unrelated.items():
            self._best_z[modality] = (unrelated.best - unrelated.mean) / unrelated.deviation
        self._first_shares = _first_shares(self._best_z)
        self._leading = max(self._first_shares, key=self._first_shares.__getitem__, default="")

    def score(self, modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """z-scores and matches of the cosines (n,) of the query with items of one modality.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; or the cosines themselves and None if a
            part of the query has no bank.
        """
        unrelated = self._unrelated.get(modality)
        if unrelated is None:
            return cosines, None
        cosines = cosines.astype(np.float64) * self._length
        z_scores = (cosines - unrelated.mean) / unrelated.deviation
        matches = _share_below(unrelated.best, cosines)
        reliance = self._first_shares[modality] / self._first_shares[self._leading]
        matches_by_z = _share_below(self._best_z[self._leading], z_scores)
        return z_scores, reliance * matches + (1 - reliance) * matches_by_z

    def are_close(self, modality: str, cosines: NDArray) -> NDArray:
        """(n,) bool: whether items with these cosines would be possible if they were `MARGIN` nearer."""
        unrelated = self._unrelated.get(modality)
        if unrelated is None:
            return np.zeros(len(cosines), bool)
        _, matches = self.score(modality, cosines + MARGIN * unrelated.deviation / self._length)
        return np.asarray(matches) >= POSSIBLE


def _share_below(ascending: NDArray, values: NDArray) -> NDArray:
    """Share of the ascending numbers that are below each value."""
    return np.searchsorted(ascending, values) / len(ascending)


def _first_shares(best_z: Mapping[str, NDArray]) -> dict[str, float]:
    """Share of the unrelated queries whose first hit, by z, is of each modality.

    The modalities are taken to be independent, as each may have unrelated queries of its own.
    """
    shares = {}
    for modality, z_scores in best_z.items():
        is_first = np.ones(len(z_scores))
        for other, other_z_scores in best_z.items():
            if other != modality:
                is_first *= (np.searchsorted(other_z_scores, z_scores) + 0.5) / len(other_z_scores)
        shares[modality] = float(is_first.mean())
    return shares


def _scores_of_sum(parts: "Sequence[EncodedPart]", unrelated: Sequence[BankScores]) -> BankScores:
    """Scores of unrelated queries that are sums like those of the parts; see the head of the file."""
    if len(parts) == 1:
        return unrelated[0]
    weights = np.array([part.weight for part in parts])
    vectors = np.stack([part.vector for part in parts])
    centres = np.stack([scores.centre for scores in unrelated])
    directions = vectors - centres
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), SMALLEST)
    agreement = np.outer(weights, weights) * (directions @ directions.T)
    quantiles = np.linspace(0, 1, max(len(scores.best) for scores in unrelated))
    excess = np.stack([np.quantile(scores.best, quantiles) - scores.mean for scores in unrelated])
    deviations = np.array([[scores.deviation] for scores in unrelated])
    mean = float(weights @ np.array([scores.mean for scores in unrelated]))
    return BankScores(
        best=np.sort(mean + _combined(excess, agreement)),
        mean=mean,
        deviation=float(_combined(deviations, agreement)[0]),
        centre=weights @ centres,
    )


def _combined(excess: NDArray, agreement: NDArray) -> NDArray:
    """(n,) length of a sum of vectors with lengths ``excess`` (P, n) and weighted cosines ``agreement`` (P, P)."""
    squares = np.einsum("pn,pq,qn->n", excess, agreement, excess)
    return np.sqrt(np.maximum(squares, SMALLEST**2))  # rounding can make it negative
