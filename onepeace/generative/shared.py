"""A generative model for captions, answers and boxes, shared by threads."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from onepeace.errors import UserError
from onepeace.generative.generator import load_generator

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
            if task == "caption":
                return self._generator.caption([value])[0]
            return getattr(self._generator, task)([value[modality]], [words])[0]
