"""The route /ask of the JSON API: a caption of a file of the index, or the answer to a question about it."""

from typing import Any

from fastapi import FastAPI
from pydantic import StrictStr

from onepeace.serve.app import InTurn
from onepeace.serve.requests import Fields, Number, Refused
from onepeace.serve.responses import AsciiJSON
from onepeace.serve.service import Service


class AskRequest(Fields):
    """Question about a file of the index, for the model of --generator; without a question the file is captioned."""

    id: Number
    question: StrictStr = ""


def add_ask(app: FastAPI, service: Service, decoding: InTurn) -> None:
    """Add the route to an application."""

    @app.post("/ask", summary="Caption a file of the index, or answer a question about it")
    async def ask(request: AskRequest) -> Any:
        return AsciiJSON(await decoding(lambda: answer(service, request)))


def answer(service: Service, request: AskRequest) -> dict[str, Any]:
    """A caption of a file, or the answer to a question about it."""
    if service.generator is None:
        raise Refused(404, "no generative model; start the server with --generator NAME")
    task = "answer" if request.question else "caption"
    question = service.decoder().text(request.question, "question")
    output = service.generator(task, service.value(service.item(request.id)), question)
    return {"text": str(output), "confidence": round(output.confidence, 3)}
