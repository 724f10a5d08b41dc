"""Model folders: reading the configuration, and writing a new folder atomically."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onepeace.config import Config, Options, build, read_yaml
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import held, left_over, marked, remove_unfinished, sync, unfinished
from onepeace.files.sums import SUMS, is_intact, read_sums, write_sums
from onepeace.hub.architectures import architecture

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
TASKS = "tasks.yaml"
TERMS_FILE = "terms.safetensors"
"""Parameters of the terms that trained the model, by name of the term."""
CARD = "MODEL_CARD.md"
INDEX = "model.safetensors.index.json"
MODEL_FOLDER = "model folder"
REPLACED = "old"
"""Ending of a folder while another is put in its place."""


def read_config(folder: str | os.PathLike[str]) -> Config:
    """Read the configuration of a model folder; UserError if it is missing or its architecture is unknown."""
    folder = Path(folder)
    if not folder.is_dir():
        raise no_folder(folder)
    path = folder / CONFIG
    if not path.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        content = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
        raise UserError(f"no {CONFIG}, so this is not a model folder ({content})", where=folder)
    return parse_config(read_yaml(path), str(path))


def no_folder(folder: Path) -> UserError:
    """Error for a folder that does not exist."""
    replaced = left_over(folder, REPLACED)
    if replaced:
        return UserError(f"was being replaced when the process was killed; rename {replaced[0]} to it", where=folder)
    return UsageError("no such model folder", where=folder)


def parse_config(content: Options, where: str) -> Config:
    """Build the configuration from the content of a config.yaml or config.json, called ``where`` in messages."""
    if content.get("format", 1) != 1:
        raise UserError(
            f"format {content['format']} is newer than this onepeace reads (1); upgrade onepeace", where=where
        )
    if "model" in content:
        config_class = architecture(str(content.get("architecture", Config.architecture)), where).config
        content = {**content, "model": build(config_class, content["model"], where, "model")}
    return build(Config, content, where)


def check_content(folder: Path, *, again: bool = False) -> None:
    """Compare the weights and the vocabulary of a model folder with its SHA256SUMS, if it has one.

    Args:
        again: also files that were intact before and have the same size and time since.

    Raises:
        UserError: a file is not what was written.
        OSError: a file cannot be read.
    """
    for name, digest in read_sums(folder).digests.items():
        path = folder / name
        is_compared = path.match("model*.safetensors") or name == TOKENIZER
        if is_compared and path.is_file() and not is_intact(path, digest, again=again):
            raise UserError(
                f"damaged, or changed since it was written (its SHA-256 is not that in {SUMS}); copy or "
                "convert the model again",
                where=path,
            )


def check_free(folder: Path, *, replace: bool, what: str = MODEL_FOLDER) -> None:
    """Raise `UsageError` unless a new folder may be written here.

    Args:
        replace: whether a folder of the same kind, written by this package, may be replaced.
        what: kind of the folder, as its SHA256SUMS names it.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UsageError("is a file; name a folder", where=folder)
    if not replace:
        raise UsageError("already exists; choose another name, or overwrite it with --force", where=folder)
    if read_sums(folder).what != what:
        raise UsageError(
            f"holds no {SUMS} of such a folder ({what}), so it will not be replaced; move it or delete it", where=folder
        )


@contextmanager
def new_folder(folder: Path, *, replace: bool = False, what: str = MODEL_FOLDER) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `folder` when the block ends, or is deleted when it fails.

    Its SHA256SUMS is written last. Of a folder that is replaced, the files that its SHA256SUMS lists are deleted;
    everything else in it (notes, a calibration) moves into the new folder.

    Args:
        replace, what: see `check_free`.

    Raises:
        UsageError: the folder is in use (`check_free`).
        UserError: it cannot be written, for example because the disk is full.
    """
    target = Path(os.path.realpath(folder))
    check_free(target, replace=replace, what=what)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        finish_replacement(target)
        with unfinished(target, is_folder=True) as temporary:
            yield temporary
            write_sums(temporary, what)
            sync(temporary)
            check_free(target, replace=replace, what=what)
            _put_in_place(temporary, target)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=folder) from error


def finish_replacement(folder: Path) -> None:
    """Put back, or take apart, what a killed process left of a folder that it replaced."""
    remove_unfinished(folder)
    for old in left_over(folder, REPLACED):
        if folder.exists():
            _take_apart(old, folder)
        else:
            old.rename(folder)
            sync(folder.parent)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename a finished folder to its name; an older one of that name is put back if this fails."""
    if not target.exists():
        temporary.rename(target)
        sync(target.parent)
        return
    old = marked(target, REPLACED)
    with held(target):
        target.rename(old)
        try:
            temporary.rename(target)
        except BaseException:
            old.rename(target)
            raise
        sync(target.parent)
        _take_apart(old, target)


def _take_apart(old: Path, new: Path) -> None:
    """Delete from a replaced folder what its SHA256SUMS lists, and move everything else into the new one."""
    listed = read_sums(old).digests
    for path in [*old.iterdir()]:
        if path.name == SUMS:
            continue  # last, as it says what may be deleted
        if path.name in listed and (path.is_symlink() or path.is_file()):
            path.unlink()
        elif not os.path.lexists(new / path.name):
            path.rename(new / path.name)
    left = [path for path in old.iterdir() if path.name != SUMS]
    if left:
        log.warning("%s: has the name of a file of %s, and stays there", left[0], new)
        return
    shutil.rmtree(old)
