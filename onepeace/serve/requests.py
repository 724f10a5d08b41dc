"""Request bodies of the JSON API, and the content in them, checked and decoded before the model runs.

Clients send data: a path or URL in a request is neither opened nor fetched, and nothing is written to the disk. The
limits apply to a whole request, not only to each file, and decoding runs in the request's own thread, so that a
request with many large files delays only itself.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, FiniteFloat, StrictStr, ValidationError
from pydantic_core import from_json

from onepeace.errors import UserError, one_line
from onepeace.files.source import NamedBytes, scheme
from onepeace.index.filters import all_of, compile_condition, short_forms
from onepeace.index.items import without_surrogates
from onepeace.serve.limits import Limits

CONTENT = {"text": ("text", ""), "image_url": ("image", "url"), "input_audio": ("audio", "data")}
"""Modality and data field by the type of a content part of OpenAI's chat messages."""
NO_OBJECT = "must be a JSON object, sent with content-type: application/json"
MESSAGES = {
    "extra_forbidden": "no such field",
    "missing": "is missing",
    "string_unicode": "has a lone surrogate; send valid Unicode",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a JSON object"),
}
"""Messages that replace pydantic's, by type of error."""
UNION_MEMBER = re.compile(r"(constrained-)?(int|str)|\w+\[.*")
"""A part of an error's location that names a type instead of a field."""
DATA_URI = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+-]+=[\w.+\"-]*)*;base64,", re.IGNORECASE)
TEXTS_ONLY = (
    "token ids of another tokenizer; send texts (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)
MANY_PIXELS = 16_000_000
"""Pixels above which a picture is scaled down once decoded; scaling it for the model would take long."""
SIDE = 2048
"""Longest side to which it is scaled down."""
TOP = 100
"""Maximum number of hits of one request."""
Asked = TypeVar("Asked", bound=BaseModel)
Weight = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
Number = Annotated[int, Field(ge=0, lt=1 << 63)]
FILTER_CHARACTERS = 1000
"""Maximum characters of a condition or a pattern."""
Where = Annotated[str, Field(max_length=FILTER_CHARACTERS)]
Place = Annotated[str, Field(max_length=4096)]


def as_list(value: Any) -> list[Any]:
    """The value itself if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def is_token_ids(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(token, int) for token in value)


Texts = Annotated[list[StrictStr], FailFast(), BeforeValidator(as_list)]
"""A text, or a list of texts."""


class Refused(UserError):
    """Error of a refused request, with its HTTP status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
    labels: Annotated[list[StrictStr], FailFast()]
    template: str | None = Field(None, max_length=200, description='sentence with {} for the label, "a photo of a {}"')


class FilterRequest(Fields):
    """Filters of the files of the index; a file passes all of them."""

    only: Texts = Field([], description="image, audio, text, video, or another kind of the index; also pictures, ...")
    where: Annotated[list[Where], Field(max_length=30), BeforeValidator(as_list)] = Field(
        [], description="duration < 5 or width >= 1000 and 'dog' in caption; of a list, all conditions hold"
    )
    after: str | None = Field(None, max_length=100, description="2024, 2024-05 or 2024-05-01")
    before: str | None = Field(None, max_length=100)
    path: Where | None = Field(None, description="holidays/**/*.jpg")
    below: Annotated[list[Place], Field(max_length=30), BeforeValidator(as_list)] = Field(
        [], description="path of a file, or of a folder, shard or table that files lie in, or a list of them"
    )

    def filters(self) -> dict[str, Any]:
        """Arguments of `Index.search` that leave files out.

        Raises:
            UsageError: a condition cannot be parsed.
        """
        where = all_of(*map(compile_condition, self.where), short_forms(None, self.after, self.before, self.path))
        return {"only": self.only, "where": where, "below": self.below}


class SearchRequest(FilterRequest):
    """Search request; several parts make one query, their weighted sum. Without parts it lists the newest files.

    DATA is base64 or a data: URI.
    """

    text: Texts = Field([], description="words, or a list of texts")
    image: Texts = Field([], description="DATA, or a list of it")
    audio: Texts = Field([], description="DATA, or a list of it")
    like: Annotated[list[Number | str], FailFast(), BeforeValidator(as_list)] = Field(
        [], description="numbers or paths of files of the index"
    )
    without: Texts = Field([], description="texts to move away from")
    weights: dict[Literal["text", "image", "audio", "like", "without"], Weight] = {}
    top: int = Field(10, ge=1, le=TOP)
    offset: int = Field(0, ge=0, le=10_000)
    sort: Literal["match", "date", "path"] = "match"
    min_match: FiniteFloat | None = Field(None, ge=0, le=1)
    collapse: bool = Field(True, description="group very similar files into one hit")

    def num_parts(self) -> int:
        """Number of things to search for; empty texts do not count."""
        texts = filled([*self.text, *self.without])
        return len(texts) + len(self.image) + len(self.audio) + len(self.like)


class EmbeddingsRequest(BaseModel):
    """Request body of OpenAI's embeddings API; other fields are ignored."""

    input: Any = Field(
        description="A text, or a list of texts, objects with text, image and audio, and parts of "
        'messages: {"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "input_audio", "input_audio": '
        '{"data": ...}}, {"type": "text", "text": ...}'
    )
    model: str | None = Field(
        None, description="The name of /v1/models, or one of OpenAI's, text-embedding-..., which means the same model."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Must be the model's own dimension.")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description='skip: the vectors of the other items, and "errors": [{"index", "message"}, ...]'
    )


def parts_of(entry: Any, name: str) -> dict[str, str]:
    """Content of one item of /v1/embeddings, by modality."""
    if isinstance(entry, str):
        entry = {"text": entry}
    elif isinstance(entry, Mapping) and "type" in entry:
        entry = _part_of_message(entry)
    elif isinstance(entry, list) and is_token_ids(entry):
        raise Refused(422, f"{name}: {TEXTS_ONLY}")
    contents = {}
    if isinstance(entry, Mapping):
        try:
            contents = Parts.model_validate(entry).contents()
        except ValidationError as error:
            raise Refused(422, f"{name}: {first_error(error.errors(), 0)}") from error
    if not contents:
        raise Refused(422, f"{name}: must be a text, or an object with text, image or audio")
    return contents


def filled(texts: Sequence[str]) -> list[str]:
    """The texts of a field that are not empty."""
    return [text for text in texts if text]


def first_error(errors: Sequence[Any], skipped: int) -> str:
    """Message of the first pydantic error; the first ``skipped`` parts of the field name are omitted."""
    error = errors[0]
    message = MESSAGES.get(error["type"], error["msg"].replace("Input should", "must"))
    names = [name for name in map(str, error["loc"][skipped:]) if not UNION_MEMBER.fullmatch(name)]
    if not names and error["type"] == "string_unicode":
        return f"the body: the name of a field {message}"
    if not names:
        return f"the body: {NO_OBJECT if message == MESSAGES['dict_type'] else message}"
    return one_line(f"{'.'.join(names)}: {message}")


def _part_of_message(part: Mapping[str, Any]) -> dict[str, Any]:
    """{modality: content} of a part of a message, in the format of OpenAI's chat."""
    part_type = str(part["type"])
    modality, key = CONTENT.get(part_type, (part_type, ""))
    value = part.get(part_type)
    return {modality: value.get(key) if isinstance(value, Mapping) else value}


def read_body(model: type[Asked], body: bytes, content_type: str | None, limits: Limits) -> Asked:
    """The body of a request.

    Raises:
        Refused: it is not JSON, has very many values, or is not of that form.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(json|.*\+json)", kind):
        raise Refused(422, f"the body: {NO_OBJECT}")
    if len(body) > limits.values:  # before it is read: no other request is answered meanwhile
        letters = np.frombuffer(body, np.uint8)
        count = sum(np.count_nonzero(letters == letter) for letter in b",[{")
        if count > limits.values:
            raise Refused(413, f"the body: about {count} values are above the limit of {limits.values}")
    try:
        return model.model_validate(_from_json(body))
    except ValidationError as error:
        raise Refused(422, first_error(error.errors(include_url=False), 0)) from error
    except json.JSONDecodeError as error:
        raise Refused(422, f"the body: must be JSON ({one_line(error.msg)} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # not text, or nested too deep
        raise Refused(422, f"the body: must be JSON ({one_line(error)})") from error


def _from_json(body: bytes) -> Any:
    """The content of a body; ValueError if it is not JSON, RecursionError."""
    try:
        return from_json(body)
    except ValueError:  # quicker, but it refuses half of a surrogate pair, of which names of files consist
        return json.loads(body)


class Decoder:
    """The parts of one request decoded; it adds up their sizes.

    Methods take the uploaded value and the name of its field, and raise `Refused` above the limits.

    Args:
        processors: returns the processors of the model by modality; called only for files.
    """

    def __init__(self, limits: Limits, processors: Callable[[], Mapping[str, Any]]) -> None:
        self.limits = limits
        self.processors = processors
        self.pixels = 0
        self.seconds = 0.0

    def decode(self, modality: str, value: str | bytes, name: str) -> object:
        """A text, or a picture or sound in base64 or as bytes, in the form that `Embedder.encode` takes."""
        if modality == "text":
            return self.text(cast("str", value), name)
        if isinstance(value, str):
            value = self.data(value, name)
        if modality == "image":
            return self.picture(value, name)
        return self.sound(value, name)

    def text(self, value: str, name: str) -> str:
        if len(value) > self.limits.characters:
            raise Refused(413, f"{name}: {len(value)} characters are above the limit of {self.limits.characters}")
        if without_surrogates(value) != value:
            raise Refused(422, f"{name}: {MESSAGES['string_unicode']}")
        return value

    def picture(self, data: bytes, name: str) -> object:
        """Decode to a PIL image; UserError if it cannot be read."""
        from PIL import Image

        from onepeace.processors import ImageProcessor

        processor = self._processor("image", ImageProcessor)
        try:
            width, height = processor.size_in_pixels(data)
        except UserError as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):  # the limit of Pillow, which is higher
                raise Refused(413, f"{name}: above the limit of {self.limits.pixels} pixels") from error
            raise
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            raise Refused(413, f"{name}: {self.pixels} pixels in this request, above the limit of {self.limits.pixels}")
        image = processor.load(data)
        if image.width * image.height > MANY_PIXELS:
            image.thumbnail((SIDE, SIDE))
        return image

    def sound(self, data: bytes, name: str) -> object:
        """Decode the start of a sound to (samples, rate); UserError if it cannot be read."""
        from onepeace.processors import AudioProcessor

        processor = self._processor("audio", AudioProcessor)
        samples = processor.load(data, seconds=self.limits.sound)
        self.seconds += len(samples) / processor.sample_rate
        if self.seconds > self.limits.seconds:
            raise Refused(413, f"{name}: {self.seconds:.0f} s of audio, above the limit of {self.limits.seconds:.0f}")
        return samples, processor.sample_rate

    def _processor(self, modality: str, processor_class: type[Any]) -> Any:
        """The model's own processor, so that an upload gets the same vector as a file; otherwise a default one."""
        processor = self.processors().get(modality)
        return processor if isinstance(processor, processor_class) else processor_class()

    def data(self, text: str, name: str) -> NamedBytes:
        """Decode the bytes of a file from base64 or a data: URI."""
        match = DATA_URI.match(text)
        if match is not None:
            text = text[match.end() :]
        elif scheme(text):
            raise Refused(422, f"{name}: URLs are not fetched; send the data as base64 or data:...;base64,")
        if len(text) > self.limits.upload * 4 // 3 + 4:
            raise Refused(413, f"{name}: {len(text) * 3 // 4} bytes are above the limit of {self.limits.upload}")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters outside ASCII
            raise Refused(422, f"{name}: not valid base64; send the data itself, not a path") from None
        if not data:
            raise Refused(422, f"{name}: 0 bytes")
        return NamedBytes(data, name)
