"""A model that captions, answers questions and points, for any number of threads."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from onepeace.errors import UserError

TASKS = ("caption", "answer", "ground")


class Generator:
    """A generative model by name.

    Raises:
        UserError: no such model, or one that writes nothing.
    """

    def __init__(self, name: str) -> None:
        from onepeace.generative.generator import load_generator

        self.name, self._loaded, self._lock = name, load_generator(name), threading.Lock()
        self.tasks: dict[str, list[str]] = {}
        """The kinds of files that it reads, by task."""
        for task in TASKS:
            with suppress(UserError):  # it has no such task, or cannot do it
                if kinds := list(self._loaded.reader.processors(self._loaded.task(task))):
                    self.tasks[task] = kinds

    def __call__(self, task: str, value: Mapping[str, object], words: str = "") -> Any:
        """The answer about a file, with a ``confidence`` and a ``text``, ``choice`` or ``box``.

        Args:
            task: "caption", "answer" or "ground".
            value: {modality: content}.
            words: the question, or the phrase to point at.

        Raises:
            UserError: the model does not do that, or not with this kind of file; the file cannot be read.
        """
        (kind,) = value
        if kind not in self.tasks.get(task, ()):
            able = ", ".join(f"{name} ({' or '.join(kinds)})" for name, kinds in self.tasks.items())
            raise UserError(f"{task} of a file of the kind {kind}: {self.name} does {able}")
        with self._lock:
            if task == "caption":
                return self._loaded.caption([value])[0]
            return getattr(self._loaded, task)([value[kind]], [words])[0]
