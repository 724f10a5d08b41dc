"""Conversations in LLaVA's JSON: [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, ...]}].

Any modality of the model may take the place of "image", and its placeholder that of <image>. An entry with several
pictures has a list of them, and as many placeholders.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.errors import UserError


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about some media."""

    turns: Sequence[tuple[str, str | None]]
    """(what the human says, what the model answers); the last answer is None where it is asked for."""
    media: Sequence[tuple[str, Any]]
    """(modality, what its processor decodes) of each placeholder, in the order of the text; or (modality, features
    (n, D)), computed before by `Bridge.features`."""


def read_conversations(path: str | Path, keys: Iterable[str], root: str | Path | None = None) -> list[Conversation]:
    """The entries of a file.

    Args:
        keys: the modalities that may occur.
        root: folder of the media; None is that of the file.

    Raises:
        UserError: no such form; the entry is named.
    """
    folder, keys = Path(path).parent if root is None else Path(root), list(keys)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: must be a list of conversations, with one at least")
    found = []
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        try:
            media = {
                key: [entry[key]] if isinstance(entry[key], str) else list(entry[key]) for key in keys if key in entry
            }
            said = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
            placed = {key: [(key, folder / name) for name in names] for key, names in media.items()}
        except (TypeError, KeyError) as error:
            raise UserError(f"{where}: lacks {error}; see the layout of LLaVA's conversations") from error
        if not said or [who for who, _ in said] != ["human", "gpt"] * (len(said) // 2):
            raise UserError(f"{where}: its turns must be of human and gpt, one after the other")
        text = [value for _, value in said]
        found.append(conversation(list(zip(text[::2], text[1::2], strict=True)), placed, keys, where))
    return found


def conversation(
    turns: Sequence[tuple[str, str | None]], media: Mapping[str, list[tuple[str, Any]]], keys: Iterable[str], where: str
) -> Conversation:
    """With the media in the order of their placeholders in what the human says."""
    named = placeholders(keys).findall(" ".join(human for human, _ in turns))
    for key in {*named, *media}:
        if named.count(key) != len(media.get(key, [])):
            raise UserError(f"{where}: has {named.count(key)} times <{key}> for {len(media.get(key, []))} of {key}")
    waiting = {key: iter(items) for key, items in media.items()}
    return Conversation(turns, [next(waiting[key]) for key in named])


def placeholders(keys: Iterable[str]) -> re.Pattern[str]:
    """Finds <image> and the like."""
    return re.compile(f"<({'|'.join(map(re.escape, keys))})>")
