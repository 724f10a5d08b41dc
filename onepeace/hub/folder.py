"""Model folders: reading the configuration, and writing a new folder atomically."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onepeace.config import Config, Options, build, read_yaml
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import sync
from onepeace.hub.architectures import architecture

CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
CARD = "MODEL_CARD.md"
INDEX = "model.safetensors.index.json"


def read_config(folder: str | Path) -> Config:
    """Read the configuration of a model folder; UserError if it is missing or its architecture is unknown."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    path = folder / CONFIG
    if not path.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        found = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
        raise UserError(f"{folder}: no {CONFIG}, so this is no model folder ({found})")
    return parse_config(read_yaml(path), str(path))


def parse_config(content: Options, where: str) -> Config:
    """Build the configuration from the content of a config.yaml or config.json, called ``where`` in messages."""
    if content.get("format", 1) != 1:
        raise UserError(f"{where}: format {content['format']} is newer than this onepeace reads (1); upgrade onepeace")
    if "model" in content:
        kind = architecture(str(content.get("architecture", Config.architecture)), where).config
        content = {**content, "model": build(kind, content["model"], where, "model")}
    return build(Config, content, where)


def check_free(folder: Path, *, replace: bool, record: str = CONFIG, what: str = "model folder") -> None:
    """Raise UsageError if `folder` exists, unless it is empty, or `replace` is set and it has the file `record`, which
    marks it as a `what`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder")
    if not replace:
        raise UsageError(f"{folder}: already exists; choose another name, or overwrite it with --force")
    if not (folder / record).is_file():
        raise UsageError(f"{folder}: holds no {record}, so it is not a {what}; it will not be replaced")


@contextmanager
def new_folder(
    folder: Path, *, replace: bool = False, record: str = CONFIG, what: str = "model folder"
) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to `folder` when the block ends, or deleted when it fails.

    Writers create the file `record` last, so that what a killed process leaves behind cannot be loaded.
    """
    check_free(folder, replace=replace, record=record, what=what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        check_free(folder, replace=replace, record=record, what=what)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)
