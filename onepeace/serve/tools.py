"""What a language model may ask of an index: functions whose signatures and docstrings become the tools it is offered.

    tools = IndexTools(Index.open("photos.index"))
    tools.search(text="a dog in the snow", only="image", top=3)
    tokenizer.apply_chat_template(messages, tools=list(tools.functions.values()))
    tools.call("search", '{"text": "a dog in the snow"}')    # as a model asks for it

A path that a model names is looked up among the files of the index and never opened by itself. Only captions, answers
and boxes read a file, by the rules of media.py: the one that was indexed, unchanged. Nothing is written.
"""

import inspect
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Protocol, get_type_hints

from onepeace.errors import UserError, one_line
from onepeace.files.source import NamedBytes, describe
from onepeace.index.index import Index
from onepeace.index.query import LIKE, Part, encode
from onepeace.index.store import Item
from onepeace.serve.limits import Limits
from onepeace.serve.tool_results import (
    Answer,
    Box,
    Captioned,
    CaptionedFile,
    Classified,
    ClassifiedFile,
    Found,
    found_file,
    shown,
)

LIMITS = Limits()
BEST_LABELS = 5
"""Labels of a file that are named."""
MIN_MATCH = 0.5
"""Probability below which a file counts as not relevant."""

Kind = Literal["image", "audio", "text", "video"]


class Generator(Protocol):
    """What answers about pictures, which come as the bytes of their files. Each answer has a ``confidence``, 0 to 1,
    and as its words a ``text``, or a ``choice`` where the model chooses among answers."""

    def caption(
        self, images: Iterable[Mapping[str, bytes]], *, on_error: Literal["skip"]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Words for each picture or sound, {kind: bytes}, that did not fail; and failures, each with an ``index`` and a
        ``reason``. Files are read as they are asked for."""
        ...

    def answer(self, images: Sequence[Any], questions: Sequence[str]) -> Sequence[Any]:
        """Words for each."""
        ...

    def ground(self, images: Sequence[Any], phrases: Sequence[str]) -> Sequence[Any]:
        """Of each a ``box`` (x0, y0, x1, y1) in pixels."""
        ...


TAKES: Mapping[str, Sequence[Kind]] = {"caption": ["image"], "answer": ["image"], "ground": ["image"]}
"""Kinds of files that a generator takes, by tool; here one of pictures that can do everything."""


class IndexTools:
    """The tools over one index. They raise `UserError` for whatever a model should ask in another way.

    Args:
        index: open; stays open.
        generator: of captions, answers and boxes; None = these tools are not offered.
        takes: kinds of files by tool, where the generator cannot do all, or takes other files than pictures.
    """

    def __init__(
        self, index: Index, generator: Generator | None = None, takes: Mapping[str, Sequence[Kind]] = TAKES
    ) -> None:
        self.index, self.generator = index, generator
        self.takes = {} if generator is None else takes

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """The tools that are offered, by name."""
        return {name: getattr(self, name) for name in ("search", "classify", *self.takes)}

    def call(self, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
        """The result of a tool as a model asks for it, over what is in the index now.

        Args:
            arguments: by name, or the JSON of that, as OpenAI's servers give it. Models fill fields that they do not
                mean with null or an empty text; these count as not given.

        Raises:
            UserError: no such tool, wrong arguments, or what the tool itself refuses: one line for the model to read.
        """
        if name not in self.functions:
            raise UserError(f"no tool {name!r:.60}; there are {', '.join(self.functions)}")
        function = self.functions[name]
        given = _given(name, function, arguments)
        self.index.refresh()
        return function(**given)

    def search(
        self,
        text: str | None = None,
        like: str | None = None,
        only: Kind | None = None,
        path_glob: str | None = None,
        after: str | None = None,
        before: str | None = None,
        where: str | None = None,
        top: int = 10,
    ) -> Found:
        """Find pictures, sounds, texts and videos of the index by what they show, sound like or say, best first.

        Give text, like, or both for a mix. "match" is the probability that a file is what is meant; "relevant" is false
        when no file is likely to be. "start" and "end" are seconds.

        Args:
            text: a description in English of what is seen or heard, as "a dog barking in the snow"
            like: path of a file of the index, to find others that are like it
            only: find files of this kind only
            path_glob: find files with such a path only, as "holidays/**/*.jpg"
            after: find files from this date on only, as 2024, 2024-05 or 2024-05-01
            before: find files from before this date only
            where: a condition on size, mtime, date, width, height, duration, modality, path or caption, as
                duration < 5 s or width >= 1000 and caption ~ 'dog'
            top: how many files, 1 to 100
        """
        if not 1 <= top <= LIMITS.top:
            raise UserError(f"top is {top}; give 1 to {LIMITS.top}")
        parts = []
        if text is not None:
            parts.append(Part("text", _short(text, "text")))
        if like is not None:
            parts.append(Part(LIKE, self.item(like).path))
        if not parts:
            raise UserError("nothing to search for; give text, like or both")
        filters: dict[str, Any] = {"path_glob": path_glob, "after": after, "before": before, "where": where}
        chosen = () if only is None else (only,)
        results = self.index.search(parts, top=top, only=chosen, min_match=MIN_MATCH, **filters)
        return {
            "relevant": results.relevant,
            "compared": results.compared,
            "files": [found_file(hit) for hit in results.hits],
        }

    def classify(self, paths: list[str], labels: list[str]) -> Classified:
        """Say which of some labels fits each of some files of the index, with probabilities; the best five labels.

        Args:
            paths: of files of the index, as search gives them
            labels: names to choose from, as ["dog", "cat", "bird"]
        """
        from onepeace.embed.zero_shot import TEMPLATE, prototypes
        from onepeace.serve.service import LABELS

        items = self._items(paths)
        names = list(dict.fromkeys(label for label in (label.strip() for label in labels) if label))
        if not 1 <= len(names) <= LABELS:
            raise UserError(f"labels has {len(names)} names; give 1 to {LABELS}")
        names = [_short(name, "labels") for name in names]
        model = self.index.embedder

        def encode_text(sentences: list[str]) -> Any:
            return model.encode_text(sentences, progress=False)

        classes: dict[str, Any] = {}
        files: list[ClassifiedFile] = []
        for item in items:
            query = encode([Part(LIKE, item.path)], self.index.store, lambda: model)
            modality = query.weights[0][0]  # of a video, whose vector is that of its pictures and its sound: image
            if modality not in classes:
                classes[modality] = prototypes(encode_text, names, TEMPLATE.get(modality, "{}"))
            shares = (model.logit_scale * classes[modality] @ classes[modality].new_tensor(query.vector)).softmax(0)
            best = shares.sort(descending=True, stable=True)
            ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            labelled = {names[number]: round(share, 4) for number, share in islice(ranked, BEST_LABELS)}
            files.append({"path": shown(item.path), "modality": item.modality, "labels": labelled})
        return {"files": files}

    def caption(self, paths: list[str]) -> Captioned:
        """Describe each of some pictures of the index in a sentence; sounds too, where the model hears. "problem" says
        why a file has no caption.

        Args:
            paths: of pictures or sounds of the index, as search gives them
        """
        items = self._items(paths)
        generator = self._able("caption")
        files: list[CaptionedFile] = [{"path": shown(item.path), "modality": item.modality} for item in items]
        given: list[CaptionedFile] = []

        def contents() -> Iterator[dict[str, bytes]]:
            for item, file in zip(items, files, strict=True):
                try:
                    content = self._content(item, "caption")
                except UserError as error:
                    file["problem"] = one_line(error)
                    continue
                given.append(file)
                yield {item.modality: content}

        captions, failures = generator.caption(contents(), on_error="skip")
        for failure in failures:
            given[failure.index]["problem"] = failure.reason
        described = [file for file in given if "problem" not in file]
        for file, found in zip(described, captions, strict=True):
            file["caption"], file["confidence"] = _words(found), round(found.confidence, 3)
        return {"files": files}

    def answer(self, path: str, question: str) -> Answer:
        """Answer a question about what a picture of the index shows.

        Args:
            path: of a picture of the index, as search gives it
            question: in English, as "what colour is the car?"
        """
        generator = self._able("answer")
        image, asked = self._content(self.item(path), "answer"), _short(question, "question")
        (found,) = generator.answer([image], [asked])
        return {"answer": _words(found), "confidence": round(found.confidence, 3)}

    def ground(self, path: str, phrase: str) -> Box:
        """Say where in a picture of the index a thing is: its left, upper, right and lower edge in pixels. There is
        always a box; a low confidence may mean that the thing is not there.

        Args:
            path: of a picture of the index, as search gives it
            phrase: the thing, in English, as "the red car on the left"
        """
        generator = self._able("ground")
        image, asked = self._content(self.item(path), "ground"), _short(phrase, "phrase")
        (found,) = generator.ground([image], [asked])
        return {"box": [round(edge, 1) for edge in found.box], "confidence": round(found.confidence, 3)}

    def item(self, path: str) -> Item:
        """The file of the index that a path means: as results show it, or the end of one such path only.

        Raises:
            UserError: none, or several.
        """
        given = path.encode("utf-8", "backslashreplace")
        # Bytes of a name that are no text are shown as \xNN.
        raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda escape: bytes.fromhex(escape[1].decode()), given)
        names = list({given, raw, os.path.abspath(given), os.path.abspath(raw)})
        marks = ", ".join("?" * len(names))
        found = list(self.index.store.items(f"path IN ({marks}) AND problem IS NULL", names))
        if not found and given:
            ends = [start + raw for start in {b"/", os.fsencode(os.sep), b"::"}]
            same = " OR ".join("substr(path, ?) = ?" for _ in ends)
            values = [value for end in ends for value in (-len(end), end)]
            found = list(islice(self.index.store.items(f"({same}) AND problem IS NULL", values), 3))
        if not found:
            raise UserError(f"{describe(path)}: no such file in the index; give a path as search shows it")
        if len(found) > 1:
            several = ", ".join(shown(item.path) for item in found)
            raise UserError(f"{describe(path)}: could be {several}; give the whole path")
        return found[0]

    def _items(self, paths: Iterable[str]) -> list[Item]:
        paths = list(dict.fromkeys(paths))
        if not 1 <= len(paths) <= LIMITS.inputs:
            raise UserError(f"paths has {len(paths)} files; give 1 to {LIMITS.inputs}")
        return [self.item(path) for path in paths]

    def _able(self, tool: str) -> Generator:
        """The generator. UserError if there is none for this tool."""
        if self.generator is None or tool not in self.takes:
            raise UserError(f"{tool} needs a generator that can do it; give one to IndexTools, or --generator")
        return self.generator

    def _content(self, item: Item, tool: str) -> bytes:
        """The bytes of a file. UserError if it is large, gone or changed, or of a kind that the tool does not take."""
        from onepeace.serve.hits import KINDS
        from onepeace.serve.media import body_of

        kinds = self.takes[tool]
        if item.modality not in kinds:
            wanted = " or ".join(KINDS[kind] for kind in kinds)
            raise UserError(f"{shown(item.path)}: is of the kind {item.modality}; give a {wanted}")
        if item.size > LIMITS.upload:
            raise UserError(f"{shown(item.path)}: has {item.size:,} bytes; give a file of at most {LIMITS.upload:,}")
        body = body_of(item)
        return NamedBytes(b"".join(body.chunks(0, body.size)), item.path)


def _given(name: str, function: Callable[..., Any], arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    """The arguments that a model has given, their names and types right."""
    from huggingface_hub.dataclasses import type_validator

    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: the arguments are not JSON ({one_line(error)})") from error
    if not isinstance(arguments, Mapping):
        raise UserError(f"{name}: the arguments are {type(arguments).__name__}; give an object with their names")
    given = {key: value for key, value in arguments.items() if value not in (None, "")}
    signature, hints = inspect.signature(function), get_type_hints(function)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(f"{name}: {one_line(error)}; it takes {', '.join(signature.parameters)}") from error
    for key, value in given.items():
        try:
            type_validator(key, value, hints[key])
        except TypeError as error:
            wanted = inspect.formatannotation(hints[key])
            raise UserError(f"{name}: {key} is {reprlib.repr(value)}; it must be {wanted}") from error
    return given


def _short(text: str, name: str) -> str:
    if len(text) > LIMITS.characters:
        raise UserError(f"{name} has {len(text):,} characters; give at most {LIMITS.characters:,}")
    return text


def _words(found: Any) -> str:
    return found.choice if hasattr(found, "choice") else found.text
