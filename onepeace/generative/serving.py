"""A generative model in a server: shared by threads, asked by the route /ask of the API and by tools of MCP."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import StrictStr

from onepeace.errors import UserError, one_line
from onepeace.generative.generator import load_generator
from onepeace.serve.requests import Fields, Number, Refused

if TYPE_CHECKING:
    from fastapi import FastAPI

    from onepeace.index import Item
    from onepeace.serve.endpoints import InTurn
    from onepeace.serve.mcp import Tools
    from onepeace.serve.service import Service

SERVED_TASKS = ("caption", "answer", "ground")
"""Tasks of a generative model that clients can ask for."""


class SharedGenerator:
    """A generative model by name, which answers one thread at a time.

    Raises:
        UserError: there is no such model, or it is not generative.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._generator = load_generator(name)
        self._lock = threading.Lock()
        self.tasks: dict[str, list[str]] = {}
        """Modalities that the model reads, by task."""
        for task in SERVED_TASKS:
            with suppress(UserError):  # the model does not support the task
                processors = self._generator.reader.processors(self._generator.task(task))
                if processors:
                    self.tasks[task] = list(processors)

    def __call__(self, task: str, value: Mapping[str, object], words: str = "") -> Any:
        """The answer about a file, with a ``confidence`` and a ``text``, ``choice`` or ``box``.

        Args:
            task: "caption", "answer" or "ground".
            value: {modality: content}.
            words: the question, or the phrase to ground.

        Raises:
            UserError: the model does not support the task for this modality, or the file cannot be read.
        """
        (modality,) = value
        if modality not in self.tasks.get(task, ()):
            supported = ", ".join(f"{name} ({' or '.join(names)})" for name, names in self.tasks.items())
            raise UserError(f"{self.name} does not support {task} for {modality} files; it supports {supported}")
        with self._lock:
            return self._generator.ask(task, [{**value, "text": words}])[0]


class AskRequest(Fields):
    """Question about a file of the index, for the model of --generator; without a question the file is captioned."""

    id: Number
    question: StrictStr = ""


def add_ask(app: "FastAPI", service: "Service", in_turn: "InTurn") -> None:
    """Add the route /ask to an application."""
    from onepeace.serve.responses import AsciiJSON

    def answer(request: AskRequest) -> dict[str, Any]:
        if service.generator is None:
            raise Refused(404, "no generative model; start the server with --generator NAME")
        task = "answer" if request.question else "caption"
        question = service.decoder().text(request.question, "question")
        output = service.generator(task, service.value(service.item(request.id)), question)
        return {"text": str(output), "confidence": round(output.confidence, 3)}

    @app.post("/ask", summary="Caption a file of the index, or answer a question about it")
    async def ask(request: AskRequest) -> Any:
        return AsciiJSON(await in_turn(lambda: answer(request)))


class WritingTools:
    """A tool of MCP for each of `SERVED_TASKS`.

    Args:
        tools: the tools of a service that has a generative model.
    """

    def __init__(self, tools: "Tools") -> None:
        self._tools = tools

    def caption(self, paths: list[str]) -> dict[str, Any]:
        """Caption pictures of the index in one sentence each; also sounds, if the model supports them. "problem" is the
        reason if a file has no caption.

        Args:
            paths: paths of pictures or sounds of the index, as returned by search
        """
        from onepeace.serve.mcp import named

        files = []
        for item in self._tools.items(paths):
            try:
                result = self._answer("caption", item)
            except UserError as error:
                result = {"problem": one_line(error)}
            files.append({**named(item), **result})
        return {"files": files}

    def answer(self, path: str, question: str) -> dict[str, Any]:
        """Answer a question about a picture of the index.

        Args:
            path: path of a picture of the index, as returned by search
            question: an English question, e.g. "what colour is the car?"
        """
        return self._answer("answer", self._tools.item(path), self._tools.short(question, "question"))

    def ground(self, path: str, phrase: str) -> dict[str, Any]:
        """Locate an object in a picture of the index: the left, upper, right and lower edge of its box in pixels. There
        is always a box; a low confidence may mean that the object is not there.

        Args:
            path: path of a picture of the index, as returned by search
            phrase: the object in English, e.g. "the red car on the left"
        """
        return self._answer("ground", self._tools.item(path), self._tools.short(phrase, "phrase"))

    def _answer(self, task: str, item: "Item", words: str = "") -> dict[str, Any]:
        service = self._tools.service
        output = service.generator(task, service.value(item), words)
        confidence = round(output.confidence, 3)
        if task == "ground":
            return {"box": [round(edge, 1) for edge in output.box], "confidence": confidence}
        return {task: str(output), "confidence": confidence}
