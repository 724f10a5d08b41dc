"""What an index holds besides its files and vectors: the unrelated queries of its model and their scores, the files
derived from the vectors, and a vector database."""

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from onepeace.index.banks import banks_of, calibration_by_words, read_calibration, undamaged
from onepeace.index.identity import FOREIGN
from onepeace.index.matrix import Matrix, keep
from onepeace.index.matrix_files import vectors_state
from onepeace.index.plugin import LOCAL, plugin
from onepeace.index.store import Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

EXPORT_FROM = 1000
"""Number of files from which the model's text branch is exported in 10 s; without it a text query takes 3 s."""


def keep_calibration(store: Store, load: "Callable[[], Embedder]") -> None:
    """Store the unrelated queries of the model: those in its folder, else generic words, which it encodes now."""
    from onepeace.hub.resolve import resolve

    kept = undamaged(store.blob("calibration"))
    latest = None
    if FOREIGN not in store.meta:
        latest = read_calibration(resolve(store.meta["model"]), store.meta["model_hash"])
    if latest is None and kept is None and "text" in store.modalities:
        latest = calibration_by_words(load, store.meta["model_hash"])
    if latest is not None and latest != kept:
        with store.transaction():
            store.keep_blob("calibration", latest)
            store.meta["scored"] = ""  # the old scores are of other queries


def keep_text_branch(store: Store) -> None:
    """Export the text branch of the model of an index with many files."""
    has_many = store.select("SELECT 1 FROM files WHERE problem IS NULL LIMIT 1 OFFSET ?", (EXPORT_FROM - 1,))
    if FOREIGN not in store.meta and "text" in store.modalities and has_many:
        from onepeace.export import text_branch

        text_branch.keep_text_branch(store.meta["model"], store.meta["model_hash"])


def finish(store: Store, address: str | None = None) -> None:
    """Update what is derived from the vectors: the scores of the unrelated queries, the files, a vector database.

    Args:
        address: of another vector database than that of the index.
    """
    score(store)
    keep(store)
    send(store, address or store.meta["store"])


def score(store: Store) -> None:
    """Score the unrelated queries against the vectors that are new since the last time."""
    state = vectors_state(store)
    if store.meta.get("scored") != state:
        best = banks_of(store).scores_to_bytes()
        with store.transaction():
            store.keep_blob("best", best)
            store.meta["scored"] = state


def send(store: Store, address: str) -> None:
    """Update a vector database, "local" for none; its address is stored in the index once it has answered."""
    if address != LOCAL:
        matrix = Matrix(store)
        with closing(plugin(address, "open_store")(address, store, matrix)) as service:
            service.send()
    with store.transaction():
        store.meta["store"] = address
