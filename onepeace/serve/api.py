"""The JSON API, and the application that also carries the page.

Vectors in the form of OpenAI's /v1/embeddings, with pictures and sounds as data beside texts; search; the files of the
index by their numbers. Everything a client sends is data: no path is opened and no address fetched. Errors are
{"error": {"message": ...}}, one line that says what is wrong and what to do.
"""

import base64
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.exceptions import HTTPException

from onepeace import __version__
from onepeace.embed.assembly import CANCELLED
from onepeace.errors import UserError, one_line
from onepeace.index.query import LIKE
from onepeace.index.search import Hit
from onepeace.serve import docs, media
from onepeace.serve.batching import Asked
from onepeace.serve.guard import Guard
from onepeace.serve.hits import moment
from onepeace.serve.limits import Limits, Refused
from onepeace.serve.service import Service
from onepeace.serve.uploads import checked_text, data_of

logger = logging.getLogger(__name__)

AWAY = -0.5
"""Weight of the words of "without"."""
OWN_PATHS = re.compile(
    r"/health|/v1/(embeddings|models)|/search|/files/[0-9]{1,18}(/thumbnail)?|/docs|/openapi\.json|/map"
)
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
FILE_HEADERS = {
    # A file that somebody opens by itself is shown with no rights at all.
    "content-security-policy": "sandbox; default-src 'none'; img-src 'self'; media-src 'self'",
    "cache-control": "private, max-age=3600",
    "accept-ranges": "bytes",
}

Kind = Literal["image", "audio", "text", "video"]
Weight = Annotated[FiniteFloat, Field(ge=-100, le=100)]


class EmbeddingsRequest(BaseModel):
    """What OpenAI's clients send; fields that are not named here are passed over."""

    input: Any = Field(
        description='A text, or a list of items: texts; {"image": DATA}, {"audio": DATA}, {"text": ...}, or several of '
        'them in one object, which become one vector (with "weights"); {"type": "image_url", "image_url": {"url": '
        '"data:..."}}, {"type": "input_audio", "input_audio": {"data": DATA}}, {"type": "text", "text": ...}. '
        "DATA is base64, or a data: URI."
    )
    model: str | None = Field(None, description="Answered by the one model there is, whatever its name.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Only the model's own.")


class SearchRequest(BaseModel):
    """What is searched for; several parts are one query, their weighted sum."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image: str | None = Field(None, description="base64, or a data: URI")
    audio: str | None = Field(None, description="base64, or a data: URI")
    like: int | None = Field(None, description="the number (id) of a hit", ge=0, lt=1 << 63)
    without: str | list[str] = Field([], description=f"words to get away from (weight {AWAY})")
    weights: dict[Literal["text", "image", "audio", "like", "without"], Weight] = {}
    top: int = Field(10, ge=1)
    offset: int = Field(0, ge=0)
    only: Kind | list[Kind] = []
    path_glob: str | None = Field(None, max_length=1000)
    after: str | None = Field(None, max_length=100, description="2024, 2024-05 or 2024-05-01")
    before: str | None = Field(None, max_length=100)
    where: str | None = Field(None, max_length=1000, description="duration < 5 or width >= 1000 and caption ~ 'dog'")
    sort: Literal["match", "date", "path"] = "match"
    rank: str | None = Field(None, max_length=100)
    min_match: FiniteFloat | None = Field(0.5, ge=0, le=1)
    duplicates: Literal["collapse", "show"] = "collapse"


class Ascii(JSONResponse):
    """JSON with escapes: names of files may hold bytes that are no text, which Python keeps as surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def create_app(
    service: Service,
    *,
    hosts: frozenset[str] | None = None,
    password: str | None = None,
    uploads: Path | None = None,
    map_page: Callable[[], str] | None = None,
) -> FastAPI:
    """The application without the page.

    Args:
        hosts, password, uploads: see `Guard`; without the page there are no uploads.
        map_page: makes the map of the index, a page of its own; None = there is none.
    """
    app = FastAPI(
        title="onepeace",
        version=__version__,
        description="Vectors of pictures, sounds and texts, and a search over an index of files.",
        default_response_class=Ascii,
        docs_url=None,  # FastAPI's own pages load their scripts from other hosts
        redoc_url=None,
    )
    _answer_errors(app)
    limit, folder = service.limits.body, uploads or Path(os.devnull)
    app.add_middleware(Guard, own_paths=OWN_PATHS, hosts=hosts, password=password, max_body=limit, uploads=folder)

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", summary="The model and the size of its vectors")
    async def models() -> dict[str, Any]:
        about = {"id": service.model, "object": "model", "owned_by": "onepeace"}
        return {
            "object": "list",
            "data": [{**about, "embed_dim": service.embed_dim, "modalities": list(service.modalities)}],
        }

    @app.post("/v1/embeddings", summary="Unit vectors of texts, pictures and sounds")
    def embeddings(request: EmbeddingsRequest) -> Any:
        return _embeddings(service, request)

    @app.post("/search", summary="The files of the index that are nearest to a query")
    def search(request: SearchRequest) -> Any:
        parts = _parts(request, service.limits)
        own = {"text", "image", "audio", "like", "without", "weights", "only", "top", "offset"}
        options = request.model_dump(exclude=own)
        for name in ("top", "offset"):
            limit, value = getattr(service.limits, name), getattr(request, name)
            if value > limit:
                raise UserError(f"{name} is {value}; at most {limit}")
            options[name] = value
        only = [request.only] if isinstance(request.only, str) else request.only
        found = service.search(parts, only=only, **options)
        hits = [hit_fields(hit) for hit in found.hits]
        return Ascii({"relevant": found.relevant, "compared": found.compared, "hits": hits})

    @app.get("/files/{id_}", summary="A file of the index", response_class=Response)
    def file(id_: int, range_: Annotated[str | None, Header(alias="range")] = None) -> Response:
        return _response(media.body_of(service.item(id_)), range_)

    about = "A small copy of a picture or of what a video shows at a second, the waveform of a sound"

    @app.get("/files/{id_}/thumbnail", summary=about, response_class=Response)
    def thumbnail(id_: int, at: Annotated[FiniteFloat, Query(ge=0)] = 0.0) -> Response:
        return _response(media.thumbnail(service.item(id_), at), None)

    @app.get("/docs", summary="This list", response_class=HTMLResponse)
    async def documentation() -> str:
        return docs.render(app.openapi())

    if map_page is not None:

        @app.get("/map", summary="The map of the index", response_class=HTMLResponse)
        def map_() -> str:
            return map_page()

    return app


def hit_fields(hit: Hit) -> dict[str, Any]:
    """A hit as JSON; fields that are not known are left out."""
    item = hit.item
    version = f"?v={item.mtime_ns:x}"  # a number may be given to another file one day
    at = f"&at={moment(hit.start)}" if item.modality == "video" and hit.start else ""
    fields = {
        "rank": hit.rank, "id": item.id, "path": item.path, "kind": item.modality, "modality": hit.modality,
        "score": hit.score, "z": hit.z, "match": hit.match, "start": hit.start, "end": hit.end,
        **{name: getattr(item, name) for name in ("date", "width", "height", "duration", "caption")},
        "copies": list(hit.copies) or None,
        "file": f"/files/{item.id}{version}",
        "thumbnail": None if item.modality == "text" else f"/files/{item.id}/thumbnail{version}{at}",
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def _parts(request: SearchRequest, limits: Limits) -> list[tuple[Asked, float]]:
    away = [request.without] if isinstance(request.without, str) else request.without
    given = [(name, getattr(request, name)) for name in ("text", "image", "audio", LIKE)]
    given = [(name, value) for name, value in given if value not in (None, "")]
    given += [("without", words) for words in away if words]
    if len(given) > limits.inputs:
        raise Refused(413, f"{len(given)} parts; at most {limits.inputs}")
    if unused := request.weights.keys() - {name for name, _ in given}:
        raise UserError(f"weights: the query has no {', '.join(sorted(unused))}")
    parts = []
    for name, value in given:
        weight = request.weights.get(name, AWAY if name == "without" else 1.0)  # type: ignore[call-overload]
        if name == "without" and weight > 0:
            raise UserError(f"weights: without is {weight}; its weight must not be above 0")
        asked = (
            Asked(name, LIKE, value)
            if name == LIKE
            else _asked("text" if name == "without" else name, value, name, limits)
        )
        parts.append((asked, weight))
    return parts


def _asked(modality: str, value: Any, name: str, limits: Limits) -> Asked:
    """A text, picture or sound as a client sends it."""
    if not isinstance(value, str):
        raise UserError(f"{name}: must be a string, not {type(value).__name__}")
    if modality == "text":
        return Asked(name, modality, checked_text(value, name, limits))
    return Asked(name, modality, data_of(value, name, limits))


def _embeddings(service: Service, request: EmbeddingsRequest) -> Response:
    if request.dimensions not in (None, service.embed_dim):
        raise UserError(f"dimensions is {request.dimensions}; vectors of this model have {service.embed_dim}")
    entries = request.input if isinstance(request.input, list) else [request.input]
    if not 1 <= len(entries) <= service.limits.inputs:
        raise Refused(400 if not entries else 413, f"input has {len(entries)} items; give 1 to {service.limits.inputs}")
    items = [_item(entry, f"input[{index}]", service.limits) for index, entry in enumerate(entries)]
    vectors = iter(service.batching.encode([asked for parts in items for asked, _ in parts]))
    data = []
    for index, parts in enumerate(items):
        total = np.sum([weight * next(vectors) for _, weight in parts], axis=0)
        length = float(np.linalg.norm(total))
        if not length > CANCELLED:
            raise UserError(f"input[{index}]: its parts cancel out; choose other weights")
        vector = (total / length).astype("<f4") if len(parts) > 1 else total.astype("<f4")
        written: Any = vector.tolist()
        if request.encoding_format == "base64":
            written = base64.b64encode(vector.tobytes()).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": written})
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # not counted, but clients read them
    return Ascii({"object": "list", "data": data, "model": service.model, "usage": usage})


def _item(entry: Any, name: str, limits: Limits) -> list[tuple[Asked, float]]:
    """The parts of one item of /v1/embeddings, with their weights."""
    if isinstance(entry, str):
        return [(_asked("text", entry, name, limits), 1.0)]
    if isinstance(entry, Mapping):
        if "type" in entry:
            modality, value = _content_part(entry, name)
            return [(_asked(modality, value, name, limits), 1.0)]
        values = {key: value for key, value in entry.items() if key != "weights"}
        weights = entry.get("weights", {})
        if values and values.keys() <= {"text", "image", "audio"} and _are_weights(weights, values):
            return [
                (_asked(key, value, f"{name}.{key}", limits), float(weights.get(key, 1.0)))
                for key, value in values.items()
            ]
    raise UserError(
        f"{name}: must be a text, or an object with text, image, audio (and weights of these); tokens are not read"
    )


def _content_part(entry: Mapping[str, Any], name: str) -> tuple[str, Any]:
    """Modality and value of a part of a message as OpenAI's chat takes it."""
    kind = entry["type"]
    if kind == "text":
        return "text", entry.get("text")
    inner = entry.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        return "image", inner.get("url") if isinstance(inner, Mapping) else inner
    if kind == "input_audio" and isinstance(inner, Mapping):
        return "audio", inner.get("data")
    raise UserError(f"{name}: type must be text, image_url or input_audio, with a field of that name")


def _are_weights(weights: Any, values: Mapping[str, Any]) -> bool:
    return (
        isinstance(weights, Mapping)
        and weights.keys() <= values.keys()
        and all(isinstance(value, int | float) and np.isfinite(value) for value in weights.values())
    )


def _response(body: media.Body, range_: str | None) -> Response:
    """A file, or the part of it that a player asks for."""
    start, stop, status = 0, body.size, 200
    headers = dict(FILE_HEADERS)
    if body.type == media.OTHER:
        headers["content-disposition"] = "attachment"
    if range_ is not None and (match := RANGE.fullmatch(range_.strip())) and (match[1] or match[2]):
        first, last = match[1], match[2]
        start = int(first) if first else max(0, body.size - int(last))
        stop = min(body.size, int(last) + 1) if first and last else body.size
        if not start < stop:
            body.source.close()
            return _error(
                416, f"{range_.strip()}: the file has {body.size} bytes", {"content-range": f"bytes */{body.size}"}
            )
        status = 206
        headers["content-range"] = f"bytes {start}-{stop - 1}/{body.size}"
    headers["content-length"] = str(stop - start)
    return StreamingResponse(body.chunks(start, stop), status, headers, media_type=body.type)


def _answer_errors(app: FastAPI) -> None:
    """One line for every error, whoever raised it."""

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> Response:
        return _error(error.status if isinstance(error, Refused) else 400, one_line(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return _error(400, _first(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, one_line(error.detail))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return _error(500, "the server failed at this request; its log says why")


def _first(errors: Sequence[Mapping[str, Any]]) -> str:
    place = ".".join(str(part) for part in errors[0]["loc"][1:])
    return one_line(f"{place}: {errors[0]['msg']}" if place else errors[0]["msg"])


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Ascii({"error": {"message": message}}, status, headers)
