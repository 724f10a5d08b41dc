"""Answers of the JSON API, as dictionaries, to requests that pydantic has checked."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.types import Receive

from onepeace.errors import UserError
from onepeace.index import Hit, Item, Query
from onepeace.serve import media
from onepeace.serve.model import ModelService
from onepeace.serve.requests import (
    ClassifyRequest,
    Decoder,
    EmbeddingsRequest,
    FilterRequest,
    Refused,
    SearchRequest,
    as_list,
    filled,
    is_token_ids,
    parts_of,
)
from onepeace.serve.service import Service, unranked

if TYPE_CHECKING:
    from onepeace.embed.encode import Embedded
    from onepeace.serve.queue import Job

InTurn = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Function that runs another one in a thread, when it is its turn."""
CLIENT_GONE = 499
"""Status in the log of a request whose client has gone."""
SHORT = 2000
"""Characters of a request's texts below which they are made tokens at once, which takes 2 ms, without a thread."""


def models(service: ModelService) -> dict[str, Any]:
    """The model, in the format of OpenAI's /v1/models, with the dimension and modalities of its embeddings."""
    model = {
        "id": service.model,
        "object": "model",
        "owned_by": "onepeace",
        "embed_dim": service.embed_dim,
        "modalities": list(service.modalities),
    }
    return {"object": "list", "data": [model]}


def search(service: Service, request: SearchRequest) -> dict[str, Any]:
    """Hits of a query; without a query, the newest files."""
    if request.num_parts():
        results = service.search(
            _query(service, request),
            top=request.top,
            offset=request.offset,
            **request.filters(),
            sort=request.sort,
            min_match=request.min_match,
            collapse=request.collapse,
        )
    else:
        results = service.newest(top=request.top, offset=request.offset, **request.filters())
    return {**results.to_dict(), "hits": [hit_fields(hit) for hit in results]}


def timeline(service: Service, request: FilterRequest) -> dict[str, Any]:
    """Numbers of files that pass the filters, by time and by kind."""
    return service.timeline(**request.filters())


def classify(service: ModelService, request: ClassifyRequest) -> dict[str, Any]:
    """Probabilities of labels."""
    contents = request.contents()
    decoder = service.decoder()
    if len(contents) + (request.like is not None) != 1:
        raise Refused(422, "give one of text, image, audio and like")
    if request.like is not None:
        if not isinstance(service, Service):
            raise Refused(422, "like: this server has no index")
        value = service.value(service.item(request.like))
    else:
        value = {name: decoder.decode(name, content, name) for name, content in contents.items()}
    labels = [decoder.text(label, "labels") for label in request.labels]
    (by_label,) = service.classify([value], 1, labels, request.template)
    return {"labels": [{"label": label, "probability": probability} for label, probability in by_label.items()]}


async def embeddings(
    service: ModelService, request: EmbeddingsRequest, in_turn: InTurn, receive: Receive
) -> dict[str, Any]:
    """Vectors, in the format of OpenAI's /v1/embeddings.

    Args:
        in_turn: runs what takes long in a thread.
        receive: tells that the client has gone; then what waits for it leaves the queue.
    """
    queue = service.queue_now() or await in_turn(service.queue)
    service.check_model(request.model)
    embed_dim = queue.embedder.embed_dim
    if request.dimensions not in (None, embed_dim):
        raise Refused(422, f"dimensions: {request.dimensions}; vectors of this model have {embed_dim}")
    entries = as_list(request.input)
    if is_token_ids(entries):
        entries = [entries]
    limit = service.limits.items
    if not entries:
        raise Refused(422, f"input: 0 items; give 1 to {limit}")
    if len(entries) > limit:
        raise Refused(413, f"input: {len(entries)} items; give 1 to {limit}")
    with queue.open(len(entries)) as job:
        gone = asyncio.create_task(_cancel_when_gone(job, receive))
        try:
            if sum(len(entry) if isinstance(entry, str) else SHORT for entry in entries) < SHORT:
                _add(service, job, entries, request.on_error, waits=False)
            else:
                await in_turn(partial(_add, service, job, entries, request.on_error))
            results = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            if gone.done():
                raise Refused(CLIENT_GONE, "the client has gone") from None
            raise Refused(503, "the server is being stopped") from None
        finally:
            gone.cancel()
    return _listed(service.model, request, results, job.num_tokens)


def _add(service: ModelService, job: "Job", entries: Sequence[Any], on_error: str, *, waits: bool = True) -> None:
    """Decode the items of a request, and let them wait for the model."""
    decoder = service.decoder()
    for index, entry in enumerate(entries):
        name = f"input[{index}]"
        try:
            job.add(index, _decoded_entry(decoder, entry, name), name, waits=waits)
        except (UserError, UnicodeEncodeError) as error:
            if on_error == "raise":
                raise
            job.fail(index, name, error)


async def _cancel_when_gone(job: "Job", receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()


def _listed(model: str, request: EmbeddingsRequest, results: "Sequence[Embedded]", num_tokens: int) -> dict[str, Any]:
    data = []
    errors = []
    for result in results:
        if result.vector is not None:
            vector = result.vector.numpy()
            embedding = _as_base64(vector) if request.encoding_format == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": result.index, "embedding": embedding})
        elif request.on_error == "raise":
            raise UserError(str(result.reason), where=result.name) from result.error
        else:
            errors.append({"index": result.index, "message": f"{result.name}: {result.reason}"})
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    listed = {"object": "list", "data": data, "model": model, "usage": usage}
    return {**listed, "errors": errors} if request.on_error == "skip" else listed


def about_item(item: Item) -> dict[str, Any]:
    """Metadata of a file, as in a hit."""
    return hit_fields(unranked(item))


def hit_fields(hit: Hit) -> dict[str, Any]:
    """A hit as JSON, with the URLs of its file and thumbnail."""
    item = hit.item
    version = f"?v={item.mtime_ns:x}"  # the number may later belong to another file
    thumbnail = None
    if item.kind in media.PICTURED:
        thumbnail = f"files/{item.id}/thumbnail{version}"
        if item.kind == "video" and hit.start:
            thumbnail += f"&at={hit.start:.3f}"
    playable = media.suffix(item.path) in media.TYPES or item.kind in ("audio", "text")
    addresses = {"file": f"files/{item.id}{version}", "thumbnail": thumbnail, "playable": playable}
    return {**hit.to_dict(), "id": item.id, **addresses}


def _query(service: Service, request: SearchRequest) -> Query:
    limit = service.limits.parts
    if request.num_parts() > limit:
        raise Refused(413, f"{request.num_parts()} parts; at most {limit}")
    decoder = service.decoder()
    return Query(
        text=[decoder.text(text, "text") for text in filled(request.text)],
        image=[decoder.decode("image", data, "image") for data in request.image],
        audio=[decoder.decode("audio", data, "audio") for data in request.audio],
        like=[service.item(key).path for key in request.like],
        without=[decoder.text(text, "without") for text in filled(request.without)],
        weights={str(name): weight for name, weight in request.weights.items()},
    )


def _decoded_entry(decoder: Decoder, entry: Any, name: str) -> Mapping[str, object]:
    decoded = {}
    for modality, content in parts_of(entry, name).items():
        decoded[modality] = decoder.decode(modality, content, f"{name}.{modality}")
    return decoded


def _as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
