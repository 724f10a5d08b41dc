"""Search speed of an index, compared with numpy and FAISS.

``python docs/results/search_speed.py FOLDER 10000 100000`` builds indexes of 10,000 and 100,000 synthetic vectors below
FOLDER (reused by later runs), which are spread around 1,000 cluster centres as those of pictures are, and times single
queries: the median of 30 in an open index, and of 5 whole commands.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np

from onepeace.export.text_branch import keep_text_branch
from onepeace.hub.resolve import fetch_model
from onepeace.index import Index, Query
from onepeace.index.database import Store
from onepeace.index.items import Item, Span
from onepeace.index.maintain import finish
from onepeace.index.match import CALIBRATION
from onepeace.index.verify import identity

E, BATCH = 256, 10_000


def vectors(count: int) -> np.ndarray:
    """(count, E) float32 unit vectors; the mean cosine of two vectors around one centre is 0.5."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, E)).astype(np.float32)
    found = centres[rng.integers(1000, size=count)] + rng.standard_normal((count, E), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def make(folder: Path, rows: np.ndarray) -> None:
    """Write an index of images that do not exist."""
    about = {**identity("tiny"), "modalities": "image audio text"}
    with closing(Store.create(folder, E, about)) as store:
        for start in range(0, len(rows), BATCH):
            block = rows[start : start + BATCH]
            with store.transaction():
                for i, row in enumerate(block):
                    store.add(Item(f"/p/{start + i}.jpg", "image", width=i % 100), [Span("image")], row)
        with store.transaction():
            store.keep_blob("calibration", (fetch_model("tiny").folder / CALIBRATION).read_bytes())
        keep_text_branch("tiny", about["model_hash"])
        finish(store)


def milliseconds(run: Callable[[int], object], repeats: int = 30) -> float:
    """Median time of calls with the number of the repetition."""
    run(0)
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def row_of(scratch: Path, count: int) -> str:
    """Line of the table for an index of ``count`` vectors."""
    rows, folder = vectors(count), scratch / f"{count}.index"
    if not folder.exists():
        make(folder, rows)
    queries = rows[np.random.default_rng(1).integers(count, size=31)] + 0.05 * vectors(31)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    times = [milliseconds(lambda i: np.argpartition(-(rows @ queries[i]), 10)[:10])]
    flat = faiss.IndexFlatIP(E)
    lists = faiss.index_factory(E, f"IVF{4 * int(count**0.5)},SQ8", faiss.METRIC_INNER_PRODUCT)
    lists.train(rows[:200_000])
    lists.nprobe = 48
    for alone in (flat, lists):
        alone.add(rows)
        times.append(milliseconds(lambda i, alone=alone: alone.search(queries[i : i + 1], 10)))
    with Index.open(folder) as index:
        options = {"collapse": False, "top": 10}
        times.append(milliseconds(lambda i: index.search(Query(vector=queries[i]), **options)))
        times.append(milliseconds(lambda i: index.search(Query(vector=queries[i]), where="width < 50", **options)))
        right = 0
        for query in queries:
            best = {f"/p/{row}.jpg" for row in np.argsort(-(rows @ query))[:10]}
            right += len(best & {hit.item.path for hit in index.search(Query(vector=query), **options)})
    command = [sys.executable, "-m", "onepeace", "search", folder, "--text", "two dogs on a beach"]
    whole = milliseconds(lambda _: subprocess.run(command, check=True, capture_output=True), 5) / 1000  # noqa: S603
    recall = right / 10 / len(queries)
    return f"| {count:,} | {' | '.join(f'{time:.2f}' for time in times)} | {recall:.3f} | {whole:.2f} |"


def main() -> None:
    """Print the table: milliseconds of single queries, recall of the ten best, seconds of a whole command."""
    print("| vectors | numpy | FAISS flat | FAISS IVF | Index.search | with a filter | recall@10 | command, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in map(int, sys.argv[2:]):
        print(row_of(Path(sys.argv[1]), count), flush=True)


if __name__ == "__main__":
    main()
