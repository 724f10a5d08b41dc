"""Is an answer called right when it is? The rows of "By source" in match.md.

``python docs/results/match.py SHARDS [FOLDER ...]`` asks queries of the named folders below, by default of all, made of
the validation shards below SHARDS (val/flickr8k, ...). Each query is searched twice: in the whole folder, and in the
folder without its answers, where no file is right. No threshold is fitted to any of these sets, and the pictures and
sounds of "unseen" come from sources that the bundled model was not trained on (esc50 and flickr8k are in their way).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import onepeace
from onepeace.data.sample import Sample
from onepeace.evaluate.protocols.protocol import Items, encode
from onepeace.hub.resolve import fetch_model
from onepeace.index.match import CALIBRATION, POSSIBLE, RELEVANT, TEXTS, Banks, Scale, texts_of, worth
from onepeace.index.query import EncodedPart, QueryVector, bank_of_text

FIRST = 5
"""A query is answered if a right item is among this many first hits."""
GAINS = 1 / np.log2(np.arange(2, 12))
"""Gain of a right item at each of the ten places that the NDCG looks at."""
FEWEST = 5
"""Sources with fewer answered queries get no row."""
Queries = Literal["labels", "names", "captions", "items", "none"]
"""labels: each class name, answered by all items of the class, in any source. names: the same with first captions.
captions: each first caption, answered by its item. items: each item, answered by the other items of its class.
none: no queries, the items are in the way of the others."""


class Source(NamedTuple):
    """Items of one data set, and what is asked about them."""

    name: str
    modality: str
    queries: Queries = "labels"
    folder: str = ""
    """Folder of its shards below val; that of its name if empty."""
    keys: str = "*"

    def samples(self, root: Path) -> list[Sample]:
        """The samples, each with what its query needs: a label or a text."""
        items = Items(self.modality, f"val/{self.folder or self.name}/*.tar*", self.keys)
        if self.queries in ("labels", "items"):
            return items.read_labelled(root)
        return items.read(root, "text")

    def query_name(self, sample: Sample) -> str:
        """Name of the query that the item answers; "" for none."""
        if self.queries in ("labels", "items"):
            return str(sample.label).casefold()
        if self.queries == "names" and sample.captions:
            return sample.captions[0].casefold()
        return ""


IN_THE_WAY = [Source("flickr8k", "image", "none"), Source("esc50_fold5", "audio", "none")]
FOLDERS: dict[str, list[Source]] = {
    "labelled": [
        Source("tiny_imagenet", "image"),
        Source("caltech101", "image"),
        Source("fashion", "image"),
        Source("grocery", "image"),
        Source("sports", "image"),
        Source("pacs", "image"),
        Source("sounds", "audio"),
        Source("esc50_fold5", "audio"),
    ],
    "unseen": [
        Source("sports", "image"),
        Source("grocery", "image"),
        Source("fsdk", "audio", folder="sounds", keys="fsdk_*"),
        Source("emoji", "image", "names"),
        Source("openclipart", "image", "names"),
        *IN_THE_WAY,
    ],
    "sentences": [
        Source("flickr8k", "image", "captions"),
        Source("caltech101", "image", "none"),
        Source("esc50_fold5", "audio", "names"),
        Source("sounds", "audio", "none"),
    ],
    "by a picture": [
        Source("caltech101", "image", "items"),
        Source("grocery", "image", "items"),
        Source("sports", "image", "items"),
        Source("pacs", "image", "items"),
        *IN_THE_WAY,
    ],
    "by a sound": [
        Source("esc50_fold5", "audio", "items"),
        Source("sounds", "audio", "items"),
        Source("flickr8k", "image", "none"),
    ],
}


class Pool(NamedTuple):
    """The items of a folder, source after source; every array has a row for each of the n items."""

    samples: list[Sample]
    sources: NDArray[np.str_]
    """Name of the source."""
    queries: NDArray[np.str_]
    """`Source.queries` of the source."""
    query_names: NDArray[np.str_]
    modalities: NDArray[np.str_]
    vectors: NDArray
    """(n, E)"""


def pool_of(sources: Sequence[Source], root: Path, model: Any) -> Pool:
    samples: list[Sample] = []
    owners: list[Source] = []
    vectors: list[NDArray] = []
    for source in sources:
        own = source.samples(root)
        samples += own
        owners += [source] * len(own)
        vectors.append(encode(model, source.modality, [sample.inputs[source.modality] for sample in own]))
    query_names = [source.query_name(sample) for source, sample in zip(owners, samples, strict=True)]
    return Pool(
        samples=samples,
        sources=np.array([source.name for source in owners]),
        queries=np.array([source.queries for source in owners]),
        query_names=np.array(query_names),
        modalities=np.array([source.modality for source in owners]),
        vectors=np.concatenate(vectors),
    )


class Question(NamedTuple):
    """A query, its answers and the items that it is searched among."""

    query: QueryVector
    answers: NDArray[np.bool_]
    """(n,)"""
    inside: NDArray[np.bool_]
    """(n,)"""
    sources: frozenset[str]
    """The sources that the query comes from."""


def text_questions(pool: Pool, model: Any) -> list[Question]:
    """Queries by names and captions; a name that several sources have is one query."""
    texts: list[str] = []
    answers: list[NDArray[np.bool_]] = []
    origins: list[NDArray[np.bool_]] = []
    is_named = np.isin(pool.queries, ("labels", "names"))
    for name in dict.fromkeys(pool.query_names[is_named].tolist()):
        has_name = pool.query_names == name
        texts.append(name)
        answers.append(has_name)
        origins.append(is_named & has_name)
    for row in np.flatnonzero(pool.queries == "captions"):
        is_captioned = np.arange(len(pool.samples)) == row
        texts.append(pool.samples[row].captions[0])
        answers.append(is_captioned)
        origins.append(is_captioned)
    if not texts:
        return []
    everywhere = np.ones(len(pool.samples), dtype=bool)
    questions = []
    for number, vector in enumerate(encode(model, "text", texts)):
        query = QueryVector.of([EncodedPart(bank_of_text(texts[number]), vector, 1.0)])
        sources = frozenset(pool.sources[origins[number]].tolist())
        questions.append(Question(query, answers[number], everywhere, sources))
    return questions


def item_questions(pool: Pool) -> list[Question]:
    """Queries that are items: each is searched among all other items."""
    questions = []
    for row in np.flatnonzero(pool.queries == "items"):
        inside = np.arange(len(pool.samples)) != row
        answers = inside & (pool.query_names == pool.query_names[row])
        if answers.any():
            query = QueryVector.of([EncodedPart(str(pool.modalities[row]), pool.vectors[row], 1.0)])
            questions.append(Question(query, answers, inside, frozenset([str(pool.sources[row])])))
    return questions


class QueryResult(NamedTuple):
    """Result of one query."""

    answered: bool
    """Whether a right item is among the first hits."""
    ndcg: float
    """Normalised discounted cumulative gain of the first hits (`GAINS`)."""
    match: float
    """Highest match in the folder."""
    without: float
    """Highest match in the folder without the answers."""


def result_of(question: Question, pool: Pool, banks: Banks) -> QueryResult:
    """Search the folder as an index does: by `worth`; among ties, the wrong ones come first."""
    scale = Scale(banks, question.query)
    cosines = pool.vectors @ question.query.vector
    z_scores = np.zeros(len(pool.samples))
    matches = np.zeros(len(pool.samples))
    for modality in dict.fromkeys(pool.modalities.tolist()):
        rows = pool.modalities == modality
        z_scores[rows], matches[rows] = scale.score(modality, cosines[rows])
    z_scores[~question.inside] = -np.inf
    matches[~question.inside] = 0.0
    keys = (-key for key in worth(matches, z_scores))
    order = np.lexsort((question.answers, *keys))
    first_are_right = question.answers[order[: len(GAINS)]]
    largest_dcg = GAINS[: question.answers.sum()].sum()
    return QueryResult(
        answered=bool(question.answers[order[:FIRST]].any()),
        ndcg=float(GAINS[: len(first_are_right)][first_are_right].sum() / largest_dcg),
        match=float(matches.max()),
        without=float(np.where(question.answers, 0.0, matches).max()),
    )


def row_of(folder: str, queries: str, results: Sequence[QueryResult]) -> str:
    """A row of the table, in Markdown."""
    matches = np.array([result.match for result in results if result.answered])
    without = np.array([result.without for result in results])
    cells = [
        folder,
        queries,
        str(len(results)),
        str(len(matches)),
        f"{100 * np.mean([result.ndcg for result in results]):.1f}",
        f"{area_under_curve(without, matches):.3f}",
        f"{(matches >= POSSIBLE).mean():.2f}",
        f"{(without < POSSIBLE).mean():.2f}",
        f"{(matches < RELEVANT).mean():.3f}",
        f"{(without < RELEVANT).mean():.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def area_under_curve(low: NDArray, high: NDArray) -> float:
    """The probability that a value of ``high`` is above one of ``low``; equal ones count half."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left")
    not_above = np.searchsorted(ordered, high, "right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def banks_of(sources: Sequence[Source], model: Any, name: str) -> Banks:
    """The unrelated queries: those of the model's folder if items are queries, else texts that are encoded now."""
    if any(source.queries == "items" for source in sources):
        return Banks.load((fetch_model(name).folder / CALIBRATION).read_bytes())
    return Banks({bank: encode(model, "text", texts_of(bank)) for bank in TEXTS})


def rows_of(folder: str, root: Path, model: Any, name: str) -> list[str]:
    """The row of all queries of a folder, and those of its sources with enough answered queries."""
    sources = FOLDERS[folder]
    banks = banks_of(sources, model, name)
    pool = pool_of(sources, root, model)
    banks.add(pool.vectors, pool.modalities)
    results_by_name: Mapping[str, list[QueryResult]] = {"all": [], **{source.name: [] for source in sources}}
    for question in [*text_questions(pool, model), *item_questions(pool)]:
        result = result_of(question, pool, banks)
        for source_name in ("all", *question.sources):
            results_by_name[source_name].append(result)
    rows = []
    for source_name, results in results_by_name.items():
        if sum(result.answered for result in results) >= FEWEST:
            rows.append(row_of(folder, source_name, results))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder of the folder val of data/README.md")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=", ".join(FOLDERS))
    parser.add_argument("--model", default="tiny", help="model name or folder; it has a calibration")
    args = parser.parse_args()
    model = onepeace.load(args.model, dtype="float32")
    columns = ["folder", "queries", "asked", "answered", "NDCG", "AUC", "kept", "turned away"]
    columns += ["nothing relevant: right answers", "no answer"]
    print(f"| {' | '.join(columns)} |")
    print(f"| --- | --- |{' ---: |' * (len(columns) - 2)}")
    for folder in args.folders or FOLDERS:
        for row in rows_of(folder, args.shards, model, args.model):
            print(row, flush=True)


if __name__ == "__main__":
    main()
