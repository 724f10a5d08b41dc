"""Conversations in LLaVA's JSON: [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, ...]}].

Any modality of the model may take the place of "image"; several media of one entry are a list.
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
    """(what the human says, what the model answers), None where an answer is asked for."""
    media: Sequence[tuple[str, Any]]
    """(modality, what its processor decodes, or features (n, D) of it) of each placeholder, in the text's order."""

    @classmethod
    def placed(cls, turns: Sequence[tuple[str, str | None]], media: Mapping[str, Any], keys: Iterable[str]) -> Any:
        """With media by modality, one or a list; UserError unless there is a placeholder for each."""
        lists = {key: list(items) if isinstance(items, list) else [items] for key, items in media.items()}
        named = placeholders(keys).findall(" ".join(human for human, _ in turns))
        for key in {*named, *lists}:
            if named.count(key) != (count := len(lists.get(key, []))):
                raise UserError(f"{named.count(key)} <{key}> in the questions for {count} of {key}; write one for each")
        return cls(turns, [(key, lists[key].pop(0)) for key in named])


def read_conversations(path: str | Path, keys: Iterable[str], root: str | Path | None = None) -> list[Conversation]:
    """The entries of a file.

    Args:
        keys: the modalities that may occur.
        root: folder of the media; None is that of the file.

    Raises:
        UserError: no such form; the entry is named.
    """
    folder, keys, found = Path(path).parent if root is None else Path(root), list(keys), []
    try:
        for entry in json.loads(Path(path).read_text(encoding="utf-8")):
            said = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
            if not said or [who for who, _ in said] != ["human", "gpt"] * (len(said) // 2):
                raise UserError("its turns must be of human and gpt, one after the other")
            names = {key: [entry[key]] if isinstance(entry[key], str) else entry[key] for key in keys if key in entry}
            media = {key: [folder / name for name in some] for key, some in names.items()}
            turns = [(human, answer) for (_, human), (_, answer) in zip(said[::2], said[1::2], strict=True)]
            if bad := [told for _, told in turns if not isinstance(told, str) or placeholders(keys).search(told)]:
                raise UserError(f"the answer {bad[0]!r} should be a text without placeholders")
            found.append(Conversation.placed(turns, media, keys))
    except (OSError, ValueError, TypeError, KeyError, UserError) as error:
        raise UserError(f"{path}: entry {len(found)}: {error!s}; is it LLaVA's conversations JSON?") from error
    return found


def placeholders(keys: Iterable[str]) -> re.Pattern[str]:
    """Finds <image> and the like."""
    return re.compile(f"<({'|'.join(map(re.escape, keys))})>")
