"""The FastAPI application with the JSON API and the web page, and the server that runs it.

Endpoints: embeddings in the format of OpenAI's /v1/embeddings, extended to images and sounds as base64 data; search;
classification; files of the index by number. Errors are {"error": {"message": ...}} with a one-line message.
"""

import base64
import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, Header, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import FiniteFloat
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from onepeace import __version__
from onepeace.errors import UsageError, UserError, one_line
from onepeace.index import Hit, Index, Query
from onepeace.index.filters import kind_of
from onepeace.serve import media
from onepeace.serve.generator import SharedGenerator
from onepeace.serve.guard import Guard
from onepeace.serve.requests import (
    AskRequest,
    ClassifyRequest,
    EmbeddingsRequest,
    Number,
    SearchRequest,
    first_error,
    listed,
    parts_of,
)
from onepeace.serve.service import Service, unranked
from onepeace.serve.uploads import Refused

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HEAVY = 4
"""Requests with images or sounds that are decoded at the same time. Further ones wait; text searches do not."""
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
FILE_HEADERS = {
    # A file opened as a page of its own has no permissions.
    "content-security-policy": "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'none'",
    "cache-control": "private, max-age=3600",
    "accept-ranges": "bytes",
}

Second = Annotated[FiniteFloat, Parameter(ge=0, description="position in a video, in seconds")]


class Ascii(JSONResponse):
    """JSON response in ASCII: file names may contain invalid bytes, which Python keeps as surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def create_app(service: Service, *, hosts: Collection[str] = ("*",), password: str | None = None) -> FastAPI:
    """Create the application: the API, and the page at /.

    Args:
        hosts: allowed values of the Host header, "*" = any.
        password: required from clients; None = no password.
    """
    app = FastAPI(
        title="onepeace",
        version=__version__,
        description="Embeddings of images, sounds and texts, and search over an index of files.",
        default_response_class=Ascii,
        docs_url=None,  # FastAPI's own pages load their scripts from other hosts
        redoc_url=None,
    )
    _answer_errors(app)
    app.add_middleware(Guard, hosts=hosts, password=password, max_body=service.limits.body)
    heavy, pictures = CapacityLimiter(HEAVY), CapacityLimiter(HEAVY)

    async def decoded(function: Callable[[], Response]) -> Response:
        return await anyio.to_thread.run_sync(function, limiter=heavy)

    @app.get("/health", summary="Health check")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", summary="The model and the dimension of its embeddings")
    def models() -> Any:
        about = {"id": service.model, "object": "model", "owned_by": "onepeace"}
        more = {"embed_dim": service.embed_dim, "modalities": list(service.modalities)}
        return Ascii({"object": "list", "data": [about | more]})

    @app.get("/about", summary="File counts, the model, and its tasks")
    def about() -> Any:
        return Ascii(service.about())

    @app.post("/v1/embeddings", summary="Unit vectors of texts, images and sounds")
    async def embeddings(request: EmbeddingsRequest) -> Any:
        return await decoded(lambda: _embeddings(service, request))

    @app.post("/search", summary="The files of the index nearest to a query")
    async def search(request: SearchRequest) -> Any:
        if request.image or request.audio:
            return await decoded(lambda: _search(service, request))
        return await anyio.to_thread.run_sync(_search, service, request)

    @app.post("/classify", summary="Zero-shot classification of an image, a sound or a text")
    async def classify(request: ClassifyRequest) -> Any:
        return await decoded(lambda: _classify(service, request))

    @app.post("/ask", summary="Caption a file of the index, or answer a question about it")
    async def ask(request: AskRequest) -> Any:
        return await decoded(lambda: _ask(service, request))

    @app.get("/points", summary="The files of the index as 2-D points")
    def points() -> Any:
        return Ascii(service.points())

    @app.head("/files/{id_}", include_in_schema=False)
    @app.get("/files/{id_}", summary="A file of the index", response_class=Response)
    def file(request: Request, id_: Number, range_: Annotated[str | None, Header(alias="range")] = None) -> Response:
        return _response(media.body_of(service.item(id_), service.roots), range_, request.method == "HEAD")

    @app.get("/files/{id_}/about", summary="Metadata of a file, as in a search hit")
    def known(id_: Number) -> Any:
        return Ascii(hit_fields(unranked(service.item(id_))))

    @app.get("/files/{id_}/thumbnail", summary="A thumbnail, or the waveform of a sound", response_class=Response)
    async def thumbnail(id_: Number, at: Second = 0.0, large: bool = False) -> Response:
        side = media.LARGE if large else media.THUMBNAIL

        def make() -> media.Body:
            return media.thumbnail(service.item(id_), service.roots, side, at)

        return _response(await anyio.to_thread.run_sync(make, limiter=pictures), None)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def run(
    index: Index, *, host: str = "127.0.0.1", port: int = 7860, auth: str | None = None, generator: str | None = None
) -> int:
    """Serve an index until Ctrl-C or SIGTERM; prints the URL to stdout.

    Args:
        host, port: address to listen on; port 0 picks a free one.
        auth: password required from clients; mandatory on any address but a loopback address.
        generator: name of a generative model for captions, answers and boxes.

    Raises:
        UsageError: the address is in use or not local, or it needs a password and there is none.
    """
    import uvicorn

    from onepeace.serve.connections import ACCEPTED, Connection

    if auth is None and not is_loopback(host):
        raise UsageError(f"{host}: other machines can reach this address; give --password")
    hosts = [*LOOPBACK, host.lower()] if is_loopback(host) else ["*"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
    with _listening(host, port) as listener:
        service = Service(index, SharedGenerator(generator) if generator else None)
        _ = index.embedder  # now instead of with the first request
        config = uvicorn.Config(
            create_app(service, hosts=hosts, password=auth),
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            backlog=ACCEPTED,
            # The address of a client that a proxy on this machine names; elsewhere by $FORWARDED_ALLOW_IPS.
            proxy_headers=True,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"onepeace at http://{name}:{listener.getsockname()[1]}; stop with Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name, which may resolve to any address
        return False


def hit_fields(hit: Hit) -> dict[str, Any]:
    """A hit as JSON, with the URLs of its file and thumbnail."""
    item = hit.item
    version = f"?v={item.mtime_ns:x}"  # the number may later belong to another file
    at = f"&at={hit.start:.3f}" if item.modality == "video" and hit.start else ""
    small = None if item.modality == "text" else f"files/{item.id}/thumbnail{version}{at}"
    playable = media.suffix(item.path) in media.TYPES or item.modality in ("audio", "text")
    addresses = {"file": f"files/{item.id}{version}", "thumbnail": small, "playable": playable}
    return {**hit.to_dict(), "id": item.id, **addresses}


def _search(service: Service, request: SearchRequest) -> Response:
    for name in ("top", "offset"):
        if getattr(request, name) > getattr(service.limits, name):
            raise Refused(422, f"{name}: {getattr(request, name)}; at most {getattr(service.limits, name)}")
    filters = request.model_dump(include={"where", "after", "before", "path", "top", "offset"})
    try:
        filters["only"] = [kind_of(kind) for kind in listed(request.only)]
    except UserError as error:
        raise Refused(422, f"only: {error}") from error
    likes, without = listed(request.like), [words for words in listed(request.without) if words]
    given = request.given()
    if not (given or likes or without):
        results = service.newest(**filters)
    else:
        count = len(given) + len(likes) + len(without)
        if count > service.limits.inputs:
            raise Refused(413, f"{count} parts; at most {service.limits.inputs}")
        decoder = service.request()
        values = {name: decoder.decode(name, value, name) for name, value in given.items()}
        words = [decoder.text(each, "without") for each in without]
        paths = [service.item(key).path for key in likes]
        query = Query(**values, like=paths, without=words, weights=dict(request.weights))  # type: ignore[arg-type]
        options = request.model_dump(include={"sort", "rank", "min_match", "collapse"})
        results = service.search(query, **filters, **options)
    return Ascii({**results.to_dict(), "hits": [hit_fields(hit) for hit in results]})


def _classify(service: Service, request: ClassifyRequest) -> Response:
    given, decoder = request.given(), service.request()
    if len(given) + (request.like is not None) != 1:
        raise Refused(422, "give one of text, image, audio and like")
    if request.like is not None:
        value = service.value(service.item(request.like))
    else:
        value = {name: decoder.decode(name, content, name) for name, content in given.items()}
    labels = [decoder.text(label, "labels") for label in request.labels]
    (shares,) = service.classify([value], labels, request.template)
    return Ascii({"labels": [{"label": label, "probability": share} for label, share in shares.items()]})


def _ask(service: Service, request: AskRequest) -> Response:
    if service.generator is None:
        raise Refused(404, "no generative model; start the server with --generator NAME")
    task = "answer" if request.question else "caption"
    words = service.request().text(request.question, "question")
    found = service.generator(task, service.value(service.item(request.id)), words)
    return Ascii({"text": str(found), "confidence": round(found.confidence, 3)})


def _embeddings(service: Service, request: EmbeddingsRequest) -> Response:
    if request.dimensions not in (None, service.embed_dim):
        raise Refused(422, f"dimensions: {request.dimensions}; vectors of this model have {service.embed_dim}")
    entries = listed(request.input)
    if not 1 <= len(entries) <= service.limits.inputs:
        raise Refused(413 if entries else 422, f"input: {len(entries)} items; give 1 to {service.limits.inputs}")
    decoder, decoded = service.request(), []
    for index, entry in enumerate(entries):
        parts = parts_of(entry, f"input[{index}]").items()
        decoded.append({name: decoder.decode(name, value, f"input[{index}].{name}") for name, value in parts})
    vectors = service.encode(decoded).astype("<f4")
    if request.encoding_format == "base64":
        written: list[Any] = [base64.b64encode(vector.tobytes()).decode("ascii") for vector in vectors]
    else:
        written = vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(written)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # not counted, but clients read them
    return Ascii({"object": "list", "data": data, "model": service.model, "usage": usage})


def _response(body: media.Body, range_: str | None, empty: bool = False) -> Response:
    """Response with a file, or with the byte range that a player requests; `empty`: with its headers only."""
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
            whole = {"content-range": f"bytes */{body.size}"}
            return _error(416, f"{range_.strip()}: the file has {body.size} bytes", whole)
        status = 206
        headers["content-range"] = f"bytes {start}-{stop - 1}/{body.size}"
    headers["content-length"] = str(stop - start)
    return _Download(body, start, start if empty else stop, status, headers)


class _Download(StreamingResponse):
    """A part of a body, whose file is closed at the end, also if the client goes away before."""

    def __init__(self, body: media.Body, start: int, stop: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(body.chunks(start, stop), status, headers, media_type=body.type)
        self._source = body.source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._source.close()


def _answer_errors(app: FastAPI) -> None:
    """Install handlers that respond to every error with one line."""

    @app.exception_handler(UserError)
    async def user_error(_: object, error: UserError) -> Response:
        return _error(error.status if isinstance(error, Refused) else 422, one_line(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: object, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"][0] == "path":
            return _error(404, f"{one_line(first['input'])}: not the number of a file")
        return _error(422, first_error(error.errors(), 1))

    @app.exception_handler(UnicodeEncodeError)
    async def invalid_unicode(_: object, error: UnicodeEncodeError) -> Response:
        return _error(422, "a text contains a lone surrogate; send valid Unicode")

    @app.exception_handler(HTTPException)
    async def no_route(_: object, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's, of a body that is no text
            return _error(422, f"the body: must be JSON ({one_line(error.__cause__)})")
        return _error(error.status_code, one_line(error.detail))

    @app.exception_handler(Exception)
    async def internal_error(_: object, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return _error(500, "internal server error; see the log of the server")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Ascii({"error": {"message": message}}, status, headers)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, so that two servers that start at once cannot both have the port
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error.strerror or error}); choose others") from error
    with listener:
        yield listener
