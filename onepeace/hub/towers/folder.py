"""Model folders of towers, in the cache: they have a configuration, and the weights stay with the libraries."""

import hashlib
import re
from pathlib import Path

from onepeace.config import Config, write_config
from onepeace.hub.folder import CARD, CONFIG, new_folder
from onepeace.hub.towers.config import TowersConfig, check_combination, tower_names
from onepeace.progress import status

ARCHITECTURE = "towers"


def folder_of(name: str, cache: Path) -> Path:
    """Path of the folder of a model; it may not exist."""
    whole = " + ".join(tower_names(name))
    readable = re.sub(r"[^\w.-]+", "-", whole)[-80:].strip("-")
    return cache / "towers" / f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def tower_folder(name: str, cache: Path) -> Path:
    """Folder of a model of other libraries, made the first time, when the libraries download it.

    Raises:
        UserError: a model of the name cannot be loaded.
    """
    from filelock import FileLock

    folder = folder_of(name, cache)
    if (folder / CONFIG).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / CONFIG).is_file():
            _make(folder, tower_names(name))
    return folder


def _make(folder: Path, names: list[str]) -> None:
    """Load the towers, and write what is known of them."""
    from onepeace.hub.towers.libraries import open_tower
    from onepeace.hub.towers.space import describe_tower

    towers = []
    for name in names:
        status(f"loading {name}, whose weights are hashed, once ...")
        towers.append(describe_tower(name, open_tower(name)))
    model = TowersConfig(tuple(towers))
    check_combination(model)
    config = Config(model, architecture=ARCHITECTURE)  # type: ignore[arg-type]
    with new_folder(folder, replace=True) as temporary:
        (temporary / CARD).write_text(
            "The weights of this model are where its libraries keep them; their licences apply:\n\n"
            + "".join(f"- {name}\n" for name in names),
            encoding="utf-8",
        )
        write_config(config, temporary / CONFIG)
