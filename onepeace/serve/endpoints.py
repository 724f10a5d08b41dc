"""Answers of the JSON API, as dictionaries, to requests that pydantic has checked."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.index import Hit, Item, Query
from onepeace.index.filters import kind_of
from onepeace.serve import media
from onepeace.serve.requests import (
    ClassifyRequest,
    Decoder,
    EmbeddingsRequest,
    FilterRequest,
    Refused,
    SearchRequest,
    as_list,
    filled,
    parts_of,
)
from onepeace.serve.service import Service, unranked


def models(service: Service) -> dict[str, Any]:
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
            only=_kinds(request),
            where=request.condition(),
            sort=request.sort,
            min_match=request.min_match,
            collapse=request.collapse,
        )
    else:
        results = service.newest(
            top=request.top, offset=request.offset, only=_kinds(request), where=request.condition()
        )
    return {**results.to_dict(), "hits": [hit_fields(hit) for hit in results]}


def timeline(service: Service, request: FilterRequest) -> dict[str, Any]:
    """Numbers of files that pass the filters, by time and by kind."""
    return service.timeline(only=_kinds(request), where=request.condition())


def classify(service: Service, request: ClassifyRequest) -> dict[str, Any]:
    """Probabilities of labels."""
    contents = request.contents()
    decoder = service.decoder()
    if len(contents) + (request.like is not None) != 1:
        raise Refused(422, "give one of text, image, audio and like")
    if request.like is not None:
        value = service.value(service.item(request.like))
    else:
        value = {name: decoder.decode(name, content, name) for name, content in contents.items()}
    labels = [decoder.text(label, "labels") for label in request.labels]
    (by_label,) = service.classify([value], labels, request.template)
    return {"labels": [{"label": label, "probability": probability} for label, probability in by_label.items()]}


def embeddings(service: Service, request: EmbeddingsRequest) -> dict[str, Any]:
    """Vectors, in the format of OpenAI's /v1/embeddings."""
    if request.dimensions not in (None, service.embed_dim):
        raise Refused(422, f"dimensions: {request.dimensions}; vectors of this model have {service.embed_dim}")
    entries = as_list(request.input)
    limit = service.limits.inputs
    if not entries:
        raise Refused(422, f"input: 0 items; give 1 to {limit}")
    if len(entries) > limit:
        raise Refused(413, f"input: {len(entries)} items; give 1 to {limit}")
    decoder = service.decoder()
    items = [_decoded_entry(decoder, entry, f"input[{i}]") for i, entry in enumerate(entries)]
    data = []
    for i, vector in enumerate(service.encode(items).astype("<f4")):
        embedding = _as_base64(vector) if request.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": embedding})
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # not counted, but clients read them
    return {"object": "list", "data": data, "model": service.model, "usage": usage}


def about_item(item: Item) -> dict[str, Any]:
    """Metadata of a file, as in a hit."""
    return hit_fields(unranked(item))


def hit_fields(hit: Hit) -> dict[str, Any]:
    """A hit as JSON, with the URLs of its file and thumbnail."""
    item = hit.item
    version = f"?v={item.mtime_ns:x}"  # the number may later belong to another file
    thumbnail = None
    if item.modality != "text":
        thumbnail = f"files/{item.id}/thumbnail{version}"
        if item.modality == "video" and hit.start:
            thumbnail += f"&at={hit.start:.3f}"
    playable = media.suffix(item.path) in media.TYPES or item.modality in ("audio", "text")
    addresses = {"file": f"files/{item.id}{version}", "thumbnail": thumbnail, "playable": playable}
    return {**hit.to_dict(), "id": item.id, **addresses}


def _kinds(request: FilterRequest) -> list[str]:
    try:
        return [kind_of(kind) for kind in request.only]
    except UserError as error:
        raise Refused(422, f"only: {error}") from error


def _query(service: Service, request: SearchRequest) -> Query:
    limit = service.limits.inputs
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
    return base64.b64encode(vector.tobytes()).decode("ascii")
