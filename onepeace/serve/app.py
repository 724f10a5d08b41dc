"""The FastAPI application: the JSON API, and with an index the web page at /.

Embeddings in the format of OpenAI's /v1/embeddings, extended to images and sounds as base64 data; search;
classification; files of the index by number. `endpoints` computes the answers, `responses` writes them.
"""

import inspect
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import FiniteFloat
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from onepeace import __version__
from onepeace.extensions import Table
from onepeace.serve import endpoints, media
from onepeace.serve.endpoints import InTurn
from onepeace.serve.guard import Guard
from onepeace.serve.limits import Limits
from onepeace.serve.model import ModelService
from onepeace.serve.observe import Metrics, Observer
from onepeace.serve.requests import (
    ClassifyRequest,
    EmbeddingsRequest,
    FilterRequest,
    Number,
    SearchRequest,
    read_body,
)
from onepeace.serve.responses import FILE_HEADERS, AsciiJSON, VectorsJSON, answer_errors, file_response
from onepeace.serve.service import Service

PAGE = Path(__file__).parent / "page"
DECODING = max(4, os.cpu_count() or 1)
"""Requests with images, sounds or many texts that are decoded at the same time. Further ones wait; short texts do
not."""

ROUTES: Table[Callable[[FastAPI, Service, InTurn], None]] = Table({"ask": "onepeace.generative.serving.add_ask"})
"""Functions that add routes beside those of this file."""
Second = Annotated[FiniteFloat, Parameter(ge=0, description="position in a video, in seconds")]
Path_ = Annotated[str, Parameter(max_length=4096, description="path of a file of the index, as in a hit")]
Words = Annotated[str, Parameter(max_length=200, description="a part of the name of a file or folder")]


def create_app(
    service: ModelService,
    *,
    hosts: Collection[str] = ("*",),
    keys: Collection[str] = (),
    origins: Collection[str] = (),
) -> FastAPI:
    """Create the application.

    Args:
        service: a `Service` of an index, or one of a model alone, whose application has no search and no page.
        hosts: allowed host names of requests, "*" = any.
        keys: passwords of which clients need one; none = no password.
        origins: sites whose pages may send requests, such as "https://example.org".
    """
    app = FastAPI(
        title="onepeace",
        version=__version__,
        description="Embeddings of images, sounds and texts, and search over an index of files.",
        default_response_class=AsciiJSON,
        docs_url=None,  # FastAPI's own pages load their scripts from other hosts
        redoc_url=None,
    )
    app.router.route_class = _route_class(service.limits)
    answer_errors(app)
    metrics = Metrics(service.queues.waiting)
    service.queues.observe_batch = metrics.observe_batch
    app.add_middleware(Guard, hosts=hosts, keys=keys, origins=origins, limits=service.limits)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Observer, metrics=metrics)  # before the others
    in_turn = _in_turn(CapacityLimiter(DECODING))
    _add_model(app, service, in_turn)
    _add_state(app, metrics)
    if isinstance(service, Service):
        _add_search(app, service, in_turn)
        _add_files(app, service)
        _add_page(app)
        for name in ROUTES:
            ROUTES[name](app, service, in_turn)
    return app


def _in_turn(limiter: CapacityLimiter) -> InTurn:
    """Function that runs others in threads, so many at the same time as the limiter lets."""

    async def run(function: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(function, limiter=limiter)

    return run


def _route_class(limits: Limits) -> type[APIRoute]:
    """Class of the routes of an application. FastAPI describes a body; it is read here, in a third of the time,
    and without FastAPI's stacks of contexts, which no endpoint uses."""

    class Route(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if self.body_field is not None:
                self.model, *others = (each.annotation for each in inspect.signature(self.endpoint).parameters.values())
                self.num_others = len(others)
                self.app = self._answer

        async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            asked = read_body(self.model, await request.body(), request.headers.get("content-type"), limits)
            response = await self.endpoint(asked, *[request] * self.num_others)
            await response(scope, receive, send)

    return Route


def _add_model(app: FastAPI, service: ModelService, in_turn: InTurn) -> None:
    """Endpoints that return what the model says about the content of a request."""

    @app.get("/v1/models", summary="The model and the dimension of its embeddings")
    def models() -> Any:
        return AsciiJSON(endpoints.models(service))

    @app.post("/v1/embeddings", summary="Unit vectors of texts, images and sounds")
    async def embeddings(request: EmbeddingsRequest, connection: Request) -> Any:
        return VectorsJSON(await endpoints.embeddings(service, request, in_turn, connection.receive))

    @app.post("/classify", summary="Zero-shot classification of an image, a sound or a text")
    async def classify(request: ClassifyRequest) -> Any:
        return AsciiJSON(await in_turn(lambda: endpoints.classify(service, request)))


def _add_state(app: FastAPI, metrics: Metrics) -> None:
    """Endpoints for those who look after the server; they are answered however much there is to do."""

    @app.get("/health", summary="Whether the server is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether the model is loaded")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics_of_now() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_search(app: FastAPI, service: Service, in_turn: InTurn) -> None:
    """Endpoints that find files, and describe what there is to find."""

    @app.post("/search", summary="The files of the index nearest to a query")
    async def search(request: SearchRequest) -> Any:
        if request.image or request.audio:
            return AsciiJSON(await in_turn(lambda: endpoints.search(service, request)))
        return AsciiJSON(await anyio.to_thread.run_sync(endpoints.search, service, request))

    @app.get("/about", summary="File counts, the model, and its tasks")
    def about() -> Any:
        return AsciiJSON(service.about())

    @app.post("/timeline", summary="Numbers of files by year, month or day, and by kind")
    async def timeline(request: FilterRequest) -> Any:
        return AsciiJSON(await anyio.to_thread.run_sync(endpoints.timeline, service, request))

    @app.get("/names", summary="Files and folders whose names have a text")
    def names(q: Words) -> Any:
        return AsciiJSON(service.names(q))

    @app.get("/values", summary="The most frequent cameras, keywords, places, ... of the files")
    def values() -> Any:
        return AsciiJSON(service.values())

    @app.get("/points", summary="The files of the index as 2-D points")
    def points() -> Any:
        return AsciiJSON(service.points())


def _add_files(app: FastAPI, service: Service) -> None:
    """Endpoints that send files of the index."""
    drawing = _in_turn(CapacityLimiter(DECODING))

    @app.head("/files/{id_}", include_in_schema=False)
    @app.get("/files/{id_}", summary="A file of the index", response_class=Response)
    def file(id_: Number) -> Response:
        return file_response(media.body_of(service.item(id_), service.roots))

    @app.get("/files/{id_}/about", summary="Metadata of a file, as in a search hit")
    def file_about(id_: Number) -> Any:
        return AsciiJSON(endpoints.about_item(service.item(id_)))

    @app.get("/lookup", summary="Metadata of the file with a path, as in a search hit")
    def lookup(path: Path_) -> Any:
        return AsciiJSON(endpoints.about_item(service.item(path)))

    @app.get("/files/{id_}/thumbnail", summary="A thumbnail, or the waveform of a sound", response_class=Response)
    async def thumbnail(id_: Number, at: Second = 0.0, large: bool = False) -> Response:
        side = media.LARGE if large else media.THUMBNAIL

        def make() -> Response:
            body = media.thumbnail(service.item(id_), service.roots, side, at)
            return Response(body.read(), headers=FILE_HEADERS, media_type=body.type)

        return await drawing(make)


def _add_page(app: FastAPI) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
