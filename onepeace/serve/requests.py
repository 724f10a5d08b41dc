"""Request bodies of the JSON API."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr, ValidationError

from onepeace.errors import one_line
from onepeace.serve.uploads import Refused

CONTENT = {"text": ("text", ""), "image_url": ("image", "url"), "input_audio": ("audio", "data")}
"""Modality and data field by the type of a content part of OpenAI's chat messages."""
MESSAGES = {
    "extra_forbidden": "no such field",
    "missing": "is missing",
    "json_invalid": "must be JSON",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a JSON object"),
}
"""Messages that replace pydantic's, by type of error."""
UNION_MEMBER = re.compile(r"(constrained-)?(int|str)|\w+\[.*")
"""A part of an error's location that names a type instead of a field."""
Weight = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
Number = Annotated[int, Field(ge=0, lt=1 << 63)]


class Fields(BaseModel):
    """Base model that forbids unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Parts(Fields):
    """Text, image and audio of one item; DATA is base64 or a data: URI."""

    text: StrictStr | None = None
    image: StrictStr | None = Field(None, description="DATA")
    audio: StrictStr | None = Field(None, description="DATA")

    def given(self) -> dict[str, str]:
        found = {name: getattr(self, name) for name in ("text", "image", "audio")}
        return {name: value for name, value in found.items() if value or (name != "text" and value is not None)}


class ClassifyRequest(Parts):
    """Request to classify a file of the index or an uploaded one."""

    like: Number | None = Field(None, description="number of a file of the index")
    labels: list[StrictStr]
    template: str | None = Field(None, max_length=200, description='sentence with {} for the label, "a photo of a {}"')


class SearchRequest(Parts):
    """Search request; several parts make one query, their weighted sum. Without parts it lists the newest files."""

    like: Number | str | list[Number | str] = Field([], description="numbers or paths of files of the index")
    without: StrictStr | list[StrictStr] = Field([], description="texts to move away from")
    weights: dict[Literal["text", "image", "audio", "like", "without"], Weight] = {}
    only: StrictStr | list[StrictStr] = Field([], description="image, audio, text or video; also pictures, sounds, ...")
    where: str | None = Field(None, max_length=1000, description="duration < 5 or width >= 1000 and 'dog' in caption")
    after: str | None = Field(None, max_length=100, description="2024, 2024-05 or 2024-05-01")
    before: str | None = Field(None, max_length=100)
    path: str | None = Field(None, max_length=1000, description="holidays/**/*.jpg")
    top: int = Field(10, ge=1)
    offset: int = Field(0, ge=0)
    sort: Literal["match", "date", "path"] = "match"
    rank: Literal["match", "raw"] = "match"
    min_match: FiniteFloat | None = Field(None, ge=0, le=1)
    collapse: bool = Field(True, description="group very similar files into one hit")


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
    elif isinstance(entry, Mapping) and "type" in entry:  # a part of a message, as OpenAI's chat takes it
        modality, key = CONTENT.get(str(entry["type"]), (str(entry["type"]), ""))
        value = entry.get(str(entry["type"]))
        entry = {modality: value.get(key) if isinstance(value, Mapping) else value}
    try:
        given = Parts.model_validate(entry).given() if isinstance(entry, Mapping) else {}
    except ValidationError as error:
        raise Refused(422, f"{name}: {first_error(error.errors(), 0)}") from error
    if not given:
        raise Refused(422, f"{name}: must be a text, or an object with text, image or audio")
    return given


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def first_error(errors: Sequence[Any], skipped: int) -> str:
    """Message of the first pydantic error; the first ``skipped`` parts of the field name are omitted."""
    first = errors[0]
    said = MESSAGES.get(first["type"], first["msg"].replace("Input should", "must"))
    if first["type"] == "json_invalid":
        return one_line(f"the body: {said} ({first['ctx']['error']} at character {first['loc'][-1]})")
    place = ".".join(part for part in map(str, first["loc"][skipped:]) if not UNION_MEMBER.fullmatch(part))
    return one_line(f"{place}: {said}" if place else f"the body: {said}, sent with content-type: application/json")
