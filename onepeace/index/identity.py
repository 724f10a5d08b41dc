"""What determines the vectors of an index: its model and the preprocessing."""

import os
from pathlib import Path

from onepeace.errors import UserError
from onepeace.index.store import Store


def identity(model: str) -> dict[str, str]:
    """Name and hash of a model and the version of the preprocessing, which determine its vectors."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = os.path.abspath(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def check_model(store: Store, name: str) -> dict[str, str]:
    """The `identity` of a model, which must be that of an index.

    Raises:
        UserError: the model cannot be found, or the index was built with another model or another version of the
            preprocessing.
    """
    try:
        wanted = identity(name)
    except UserError as error:
        made_with = f"the index {store.folder} was made with {store.meta['model']}, see --model"
        raise UserError(f"{error}; {made_with}") from error
    if wanted["model_hash"] != store.meta["model_hash"]:
        raise _of_another(store, wanted, "model_hash", "model", "leave out --model, or build a new index")
    if wanted["preprocessing"] != store.meta["preprocessing"]:
        remedy = f"build a new index, or use {store.meta.get('made_by')}"
        raise _of_another(store, wanted, "preprocessing", "preprocessing", remedy)
    return wanted


def _of_another(store: Store, wanted: dict[str, str], key: str, what: str, remedy: str) -> UserError:
    made_with = f"{store.meta['model']} ({store.meta[key]})"
    not_with = f"{wanted['model']} ({wanted[key]})"
    return UserError(
        f"{store.folder}: made with another {what}, {made_with}, not {not_with}; vectors of both cannot be compared, "
        f"so {remedy}"
    )
