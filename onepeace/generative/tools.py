"""Tools of the MCP server for a model that writes: captions, answers and boxes."""

from typing import Any

from onepeace.errors import UserError, one_line
from onepeace.index import Item
from onepeace.serve.mcp import Tools, named


class WritingTools(Tools):
    """A tool for each of `SERVED_TASKS`, on a service that has a generative model."""

    def caption(self, paths: list[str]) -> dict[str, Any]:
        """Caption pictures of the index in one sentence each; also sounds, if the model supports them. "problem" is the
        reason if a file has no caption.

        Args:
            paths: paths of pictures or sounds of the index, as returned by search
        """
        return {"files": [{**named(item), **self._captioned(item)} for item in self._items(paths)]}

    def answer(self, path: str, question: str) -> dict[str, Any]:
        """Answer a question about a picture of the index.

        Args:
            path: path of a picture of the index, as returned by search
            question: an English question, e.g. "what colour is the car?"
        """
        output = self._answer_to("answer", self.item(path), self._short(question, "question"))
        return {"answer": str(output), "confidence": round(output.confidence, 3)}

    def ground(self, path: str, phrase: str) -> dict[str, Any]:
        """Locate an object in a picture of the index: the left, upper, right and lower edge of its box in pixels. There
        is always a box; a low confidence may mean that the object is not there.

        Args:
            path: path of a picture of the index, as returned by search
            phrase: the object in English, e.g. "the red car on the left"
        """
        output = self._answer_to("ground", self.item(path), self._short(phrase, "phrase"))
        box = [round(edge, 1) for edge in output.box]
        return {"box": box, "confidence": round(output.confidence, 3)}

    def _captioned(self, item: Item) -> dict[str, Any]:
        try:
            output = self._answer_to("caption", item)
        except UserError as error:
            return {"problem": one_line(error)}
        return {"caption": str(output), "confidence": round(output.confidence, 3)}

    def _answer_to(self, task: str, item: Item, words: str = "") -> Any:
        return self.service.generator(task, self.service.value(item), words)
