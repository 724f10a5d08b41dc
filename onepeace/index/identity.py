"""Which model the vectors of an index are of, and whether another one's may join them."""

import os
from pathlib import Path

from onepeace.errors import UserError
from onepeace.index.store import Store

IMPORTED = "imported"
"""In place of the hash of a model that is known by its name only."""


def identity(model: str) -> dict[str, str]:
    """What vectors of a model depend on, as an index keeps it."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = os.path.abspath(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def refuse_imported(store: Store) -> None:
    """UserError for an index of vectors that were imported: there is no model here to make others like them."""
    if store.meta["model_hash"] == IMPORTED:
        raise UserError(
            f"{store.folder}: holds vectors of {store.meta['model']} that were imported, and onepeace cannot run that "
            "model; search with --like FILE of the index, or with --vectors of words; add with: onepeace index import"
        )


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    theirs = store.meta
    remedies = {
        "model_hash": ("model", "leave out --model, or build a new index"),
        "preprocessing": ("preprocessing", f"build a new index, or use {theirs.get('made_by')}"),
    }
    for key, (what, remedy) in remedies.items():
        if theirs[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, theirs))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared, so "
                f"{remedy}"
            )
