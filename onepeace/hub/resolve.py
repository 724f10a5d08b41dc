"""Models by name (bundled, a local folder, a released checkpoint, models of other libraries, a Hugging Face
repository), opened once, and the identity by which a model's vectors are told from those of another. No torch here.

What begins with "fetch" may use the network; nothing else does.
"""

import difflib
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from onepeace.config import Config, write_config
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import cache_folder
from onepeace.files.sums import SUMS
from onepeace.hub.download import RELEASED, fetch, from_hub
from onepeace.hub.folder import CARD, CONFIG, INDEX, TOKENIZER, new_folder, no_folder, read_config
from onepeace.hub.towers.config import EXAMPLES, TowersConfig, check_combination, names_towers, tower_names
from onepeace.progress import status

BUNDLED = Path(__file__).resolve().parents[1] / "weights"
BUNDLED_NAMES = ("tiny", "tiny-fast", "tiny-captions")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_HUB_FILES = [CONFIG, "*.safetensors", INDEX, TOKENIZER, CARD, "tasks.yaml", SUMS]
log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Name and hash of a model."""

    name: str
    """Name for people; for a model folder its absolute path."""
    hash: str
    """Two models with the same hash are taken to give the same vectors."""
    is_loadable: bool = False
    """Whether `onepeace.load` gives the model by its name."""


@dataclass(frozen=True)
class OpenModel(os.PathLike[str]):
    """A model whose configuration has been read; it can stand wherever the name or folder of a model can."""

    name: str
    """In a form that holds from any working folder."""
    folder: Path
    config: Config

    def __fspath__(self) -> str:
        return str(self.folder)

    __str__ = __fspath__

    @cached_property
    def identity(self) -> Identity:
        """By which an index knows the model."""
        return Identity(self.name, fingerprint(self.folder), is_loadable=True)


def open_model(folder: str | os.PathLike[str]) -> OpenModel:
    """Open a model folder. UserError if it is not one."""
    if isinstance(folder, OpenModel):
        return folder
    return OpenModel(os.path.abspath(folder), Path(folder), read_config(folder))


def fetch_model(name: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> OpenModel:
    """Open a model by its name, downloading it if needed.

    Args:
        name: a bundled model (`BUNDLED_NAMES`), an existing folder (never touches the network), a released name
            (`registry.RELEASED`; downloaded and converted the first time), a model of another library or several
            joined by " + " (onepeace/hub/towers), or a Hugging Face repository "owner/name", or "owner/name@revision",
            that holds a model folder.
        cache: folder for downloads, instead of `cache_folder` and the Hub's cache.

    Raises:
        UserError: unknown name (the nearest known ones are listed), an incomplete folder, no network.
    """
    if isinstance(name, OpenModel):
        return name
    folder = _fetch_folder(os.fspath(name), cache)
    return OpenModel(full_name(name), folder, read_config(folder))


def _fetch_folder(text: str, cache: str | os.PathLike[str] | None) -> Path:
    path = Path(text).expanduser()
    downloads = cache_folder() if cache is None else Path(cache).expanduser()
    if text in BUNDLED_NAMES:
        return BUNDLED / text
    if names_towers(text):
        return _fetch_towers(text, downloads)
    if text and path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"is a file; make a model folder of it with: onepeace convert {text} -o OUT", where=text)
    if text in RELEASED:
        return _fetch_released(text, downloads)
    repository = _REPOSITORY.fullmatch(text)
    if repository and not text.startswith("."):
        what = f"{text}: no such folder here, and the model"
        remedy = "check the name and the network, or give a folder"
        return from_hub(repository[1], _HUB_FILES, what, remedy, cache, revision=repository[2])
    raise _unknown(text)


def _unknown(name: str) -> UserError:
    """Error for a name that no model has, with those that are near."""
    if os.sep in name or name.startswith((".", "~")):
        return no_folder(Path(name).expanduser())
    near = difflib.get_close_matches(name.lower(), [*BUNDLED_NAMES, *RELEASED], n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"bundled: {', '.join(BUNDLED_NAMES)};"
    more = "onepeace info --help lists all; a folder, or owner/name of the Hugging Face Hub, is a model too, and so are"
    return UsageError(f"no model {name!r}; {hint} {more} {EXAMPLES}")


def full_name(name: str | os.PathLike[str]) -> str:
    """The name of a model in a form that holds from any working folder."""
    text = os.fspath(name)
    if names_towers(text):
        return " + ".join(tower_names(text))
    if text not in BUNDLED_NAMES and Path(text).expanduser().is_dir():
        return os.path.abspath(Path(text).expanduser())
    return text


def _fetch_released(name: str, cache: Path) -> Path:
    """Folder of a converted checkpoint in the cache, downloaded and converted the first time."""
    from filelock import FileLock

    from onepeace.hub.convert.original import describe_original, fetch_vocabulary, write_converted

    released = RELEASED[name]
    folder = cache / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # If two processes need the same model, the second waits and then finds it.
    with FileLock(folder.with_name(f"{name}.lock")):
        if folder.is_dir():
            return folder
        if "text" in released.modalities:
            fetch_vocabulary(None)  # a few MB; fail before downloading gigabytes
        log.warning(
            "%s: downloaded and converted once; this needs twice its size on the disk, and 2 GB of memory", name
        )
        file = fetch(released.url, cache / "downloads" / released.file, copies=2)
        write_converted(describe_original(file), folder, progress=True)
        file.unlink()  # as large as the model, and not needed again
        size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
        log.info("%s is in %s: %.1f GB, and about as much in memory", name, folder, size / 1e9)
    return folder


PARTS, PART = 64, 1 << 16
"""Number of samples read from a weights file, and bytes of each; a smaller file is read completely."""


def fingerprint(folder: Path) -> str:
    """Hash (16 hexadecimal digits) of the configuration, the vocabulary and samples of the weights.

    Different trainings differ in the samples; a change of a few bits outside of them is not detected.
    """
    digest = hashlib.blake2b(digest_size=8)
    paths = [folder / "config.yaml", folder / "tokenizer.json", *sorted(folder.glob("model*.safetensors"))]
    for path in filter(Path.is_file, paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= PARTS * PART:
                digest.update(file.read())
                continue
            for i in range(PARTS):
                file.seek(i * (size - PART) // (PARTS - 1))
                digest.update(file.read(PART))
    return digest.hexdigest()


ARCHITECTURE = "towers"


def folder_of(name: str, cache: Path) -> Path:
    """Path of the folder of a model; it may not exist."""
    whole = " + ".join(tower_names(name))
    readable = re.sub(r"[^\w.-]+", "-", whole)[-80:].strip("-")
    return cache / "towers" / f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _fetch_towers(name: str, cache: Path) -> Path:
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
