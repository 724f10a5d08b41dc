"""Which model the vectors of an index are of, and whether another one's may join them."""

import os
from pathlib import Path

from onepeace.errors import UserError
from onepeace.index.store import Store


def identity(model: str) -> dict[str, str]:
    """Name and hash of a model, and the version of the preprocessing: what its vectors depend on."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = os.path.abspath(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    remedies = {
        "model_hash": ("model", "leave out --model, or build a new index"),
        "preprocessing": ("preprocessing", f"build a new index, or use {store.meta.get('made_by')}"),
    }
    for key, (what, remedy) in remedies.items():
        if store.meta[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, store.meta))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared, so "
                f"{remedy}"
            )
