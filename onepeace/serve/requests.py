"""The bodies of requests of the JSON API, as clients write them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr, ValidationError

from onepeace.errors import one_line
from onepeace.serve.uploads import Refused

CONTENT = {"text": ("text", ""), "image_url": ("image", "url"), "input_audio": ("audio", "data")}
"""Modality, and the field that holds the data, by the type of a part of a message of OpenAI's chat."""
Kind = Literal["image", "audio", "text", "video"]
Weight = Annotated[FiniteFloat, Field(ge=-100, le=100)]
Number = Annotated[int, Field(ge=0, lt=1 << 63)]


class Fields(BaseModel):
    """Fields by name, and no others."""

    model_config = ConfigDict(extra="forbid")


class Parts(Fields):
    """A picture, a sound and words that are one item; DATA is base64 or a data: URI."""

    text: StrictStr | None = None
    image: StrictStr | None = Field(None, description="DATA")
    audio: StrictStr | None = Field(None, description="DATA")

    def given(self) -> dict[str, str]:
        found = {name: getattr(self, name) for name in ("text", "image", "audio")}
        return {name: value for name, value in found.items() if value}


class ClassifyRequest(Parts):
    """What is classified: a file of the index, or one that is sent."""

    like: Number | None = Field(None, description="number of a file of the index")
    labels: list[StrictStr]
    template: str | None = Field(None, max_length=200, description='sentence with {} for the label, "a photo of a {}"')


class SearchRequest(Parts):
    """Parts of a search; several are one query, their weighted sum. Nothing at all lists the newest files."""

    like: Number | str | list[Number | str] = Field([], description="numbers or paths of files of the index")
    without: StrictStr | list[StrictStr] = Field([], description="words to move away from")
    weights: dict[Literal["text", "image", "audio", "like", "without"], Weight] = {}
    only: Kind | list[Kind] = []
    where: str | None = Field(None, max_length=1000, description="duration < 5 or width >= 1000 and 'dog' in caption")
    after: str | None = Field(None, max_length=100, description="2024, 2024-05 or 2024-05-01")
    before: str | None = Field(None, max_length=100)
    path: str | None = Field(None, max_length=1000, description="holidays/**/*.jpg")
    top: int = Field(10, ge=1)
    offset: int = Field(0, ge=0)
    sort: Literal["match", "date", "path"] = "match"
    rank: Literal["match", "raw"] = "match"
    min_match: FiniteFloat | None = Field(None, ge=0, le=1)
    collapse: bool = Field(True, description="near copies as one hit")


class AskRequest(Fields):
    """A question about a file of the index, for the model of --generator; without one it is described."""

    id: Number
    question: StrictStr = ""


class EmbeddingsRequest(BaseModel):
    """What OpenAI's clients send; fields that are not named here are passed over."""

    input: Any = Field(
        description="A text, or a list of texts, objects with text, image and audio, and parts of "
        'messages: {"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "input_audio", "input_audio": '
        '{"data": ...}}, {"type": "text", "text": ...}'
    )
    model: Any = Field(None, description="Answered by the one model there is, whatever its name.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Only the model's own.")


def parts_of(entry: Any, name: str) -> dict[str, str]:
    """Content of one item of /v1/embeddings by modality."""
    if isinstance(entry, str):
        entry = {"text": entry}
    elif isinstance(entry, Mapping) and "type" in entry:  # a part of a message, as OpenAI's chat takes it
        modality, key = CONTENT.get(str(entry["type"]), (str(entry["type"]), ""))
        value = entry.get(str(entry["type"]))
        entry = {modality: value.get(key) if isinstance(value, Mapping) else value}
    try:
        given = Parts.model_validate(entry).given()
    except ValidationError as error:
        raise Refused(422, f"{name}: {first_error(error.errors(), 0)}") from error
    if not given:
        raise Refused(422, f"{name}: must be a text, or an object with text, image, audio")
    return given


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def first_error(errors: Sequence[Any], skipped: int) -> str:
    """The first of pydantic's errors; the field is named from its ``skipped``-th part on."""
    place = ".".join(str(part) for part in errors[0]["loc"][skipped:])
    return one_line(f"{place}: {errors[0]['msg']}" if place else errors[0]["msg"])
