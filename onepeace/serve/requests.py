"""Request bodies of the JSON API."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr, ValidationError

from onepeace.errors import one_line
from onepeace.index.filters import compile_condition, short_forms
from onepeace.index.part import ANY_ENDS
from onepeace.serve.uploads import Refused

CONTENT = {"text": ("text", ""), "image_url": ("image", "url"), "input_audio": ("audio", "data")}
"""Modality and data field by the type of a content part of OpenAI's chat messages."""
MESSAGES = {
    "extra_forbidden": "no such field",
    "missing": "is missing",
    "json_invalid": "must be JSON",
    "string_unicode": "has a lone surrogate; send valid Unicode",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a JSON object"),
}
"""Messages that replace pydantic's, by type of error."""
UNION_MEMBER = re.compile(r"(constrained-)?(int|str)|\w+\[.*")
"""A part of an error's location that names a type instead of a field."""
LAST_LETTER = "\U0010ffff"
"""Comes after all that may follow a prefix of a path."""
Weight = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
Number = Annotated[int, Field(ge=0, lt=1 << 63)]
Where = Annotated[str, Field(max_length=1000)]


class Fields(BaseModel):
    """Base model that forbids unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Parts(Fields):
    """Text, image and audio of one item; DATA is base64 or a data: URI."""

    text: StrictStr | None = None
    image: StrictStr | None = Field(None, description="DATA")
    audio: StrictStr | None = Field(None, description="DATA")

    def contents(self) -> dict[str, str]:
        """The parts that there are, by modality; an empty text does not count."""
        parts = {"text": self.text or None, "image": self.image, "audio": self.audio}
        return {modality: content for modality, content in parts.items() if content is not None}


class ClassifyRequest(Parts):
    """Request to classify a file of the index or an uploaded one."""

    like: Number | None = Field(None, description="number of a file of the index")
    labels: list[StrictStr]
    template: str | None = Field(None, max_length=200, description='sentence with {} for the label, "a photo of a {}"')


class FilterRequest(Fields):
    """Filters of the files of the index; a file passes all of them."""

    only: StrictStr | list[StrictStr] = Field([], description="image, audio, text or video; also pictures, sounds, ...")
    where: Where | Annotated[list[Where], Field(max_length=30)] | None = Field(
        None, description="duration < 5 or width >= 1000 and 'dog' in caption; of a list, all conditions hold"
    )
    after: str | None = Field(None, max_length=100, description="2024, 2024-05 or 2024-05-01")
    before: str | None = Field(None, max_length=100)
    path: str | None = Field(None, max_length=1000, description="holidays/**/*.jpg")
    below: str | None = Field(
        None, max_length=4096, description="whole path of a folder, shard or table that files lie in"
    )

    def condition(self) -> str | None:
        """All filters but `only` as one condition.

        Raises:
            UsageError: one of them cannot be parsed.
        """
        conditions = as_list(self.where or [])
        for condition in conditions:
            compile_condition(condition)  # alone first, so that errors name columns of the user's text
        if self.below:
            conditions = [*conditions, _inside(self.below)]
        where = " and ".join(f"({condition}\n)" for condition in conditions) or None
        return short_forms(where, self.after, self.before, self.path)


class SearchRequest(FilterRequest):
    """Search request; several parts make one query, their weighted sum. Without parts it lists the newest files.

    DATA is base64, a data: URI, or "upload:KEY" with a key that an earlier search has returned.
    """

    text: StrictStr | list[StrictStr] = Field([], description="words, or a list of texts")
    image: StrictStr | list[StrictStr] = Field([], description="DATA, or a list of it")
    audio: StrictStr | list[StrictStr] = Field([], description="DATA, or a list of it")
    like: Number | str | list[Number | str] = Field([], description="numbers or paths of files of the index")
    without: StrictStr | list[StrictStr] = Field([], description="texts to move away from")
    weights: dict[Literal["text", "image", "audio", "like", "without"], Weight] = {}
    top: int = Field(10, ge=1)
    offset: int = Field(0, ge=0)
    sort: Literal["match", "date", "path"] = "match"
    rank: Literal["match", "raw"] = "match"
    min_match: FiniteFloat | None = Field(None, ge=0, le=1)
    collapse: bool = Field(True, description="group very similar files into one hit")

    def num_parts(self) -> int:
        """Number of things to search for; empty texts do not count."""
        texts = filled(self.text) + filled(self.without)
        return len(texts) + len(as_list(self.image)) + len(as_list(self.audio)) + len(as_list(self.like))


class AskRequest(Fields):
    """Question about a file of the index, for the model of --generator; without a question the file is captioned."""

    id: Number
    question: StrictStr = ""


class EmbeddingsRequest(BaseModel):
    """Request body of OpenAI's embeddings API; other fields are ignored."""

    input: Any = Field(
        description="A text, or a list of texts, objects with text, image and audio, and parts of "
        'messages: {"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "input_audio", "input_audio": '
        '{"data": ...}}, {"type": "text", "text": ...}'
    )
    model: Any = Field(None, description="Ignored: the server has one model.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Must be the model's own dimension.")


def parts_of(entry: Any, name: str) -> dict[str, str]:
    """Content of one item of /v1/embeddings, by modality."""
    if isinstance(entry, str):
        entry = {"text": entry}
    elif isinstance(entry, Mapping) and "type" in entry:
        entry = _part_of_message(entry)
    contents = {}
    if isinstance(entry, Mapping):
        try:
            contents = Parts.model_validate(entry).contents()
        except ValidationError as error:
            raise Refused(422, f"{name}: {first_error(error.errors(), 0)}") from error
    if not contents:
        raise Refused(422, f"{name}: must be a text, or an object with text, image or audio")
    return contents


def as_list(value: Any) -> list[Any]:
    """The value itself if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def filled(value: str | list[str]) -> list[str]:
    """The texts of a field that are not empty."""
    return [text for text in as_list(value) if text]


def first_error(errors: Sequence[Any], skipped: int) -> str:
    """Message of the first pydantic error; the first ``skipped`` parts of the field name are omitted."""
    error = errors[0]
    message = MESSAGES.get(error["type"], error["msg"].replace("Input should", "must"))
    if error["type"] == "json_invalid":
        return one_line(f"the body: {message} ({error['ctx']['error']} at character {error['loc'][-1]})")
    names = [name for name in map(str, error["loc"][skipped:]) if not UNION_MEMBER.fullmatch(name)]
    if not names and error["type"] == "string_unicode":
        return f"the body: the name of a field {message}"
    if not names:
        return one_line(f"the body: {message}, sent with content-type: application/json")
    return one_line(f"{'.'.join(names)}: {message}")


def _inside(place: str) -> str:
    """Condition for the files in a folder, a shard or a table, and in the folders below it."""
    starts = [f"{place.rstrip(os.sep)}{separator}" for separator in ANY_ENDS]
    return " or ".join(f"path >= {start!r} and path < {start + LAST_LETTER!r}" for start in starts)


def _part_of_message(part: Mapping[str, Any]) -> dict[str, Any]:
    """{modality: content} of a part of a message, in the format of OpenAI's chat."""
    part_type = str(part["type"])
    modality, key = CONTENT.get(part_type, (part_type, ""))
    value = part.get(part_type)
    return {modality: value.get(key) if isinstance(value, Mapping) else value}
