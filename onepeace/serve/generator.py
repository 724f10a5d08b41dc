"""A model that captions, answers questions and points, loaded when it is first asked."""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from onepeace.errors import UserError

TASKS: Mapping[str, Sequence[str]] = {"caption": ["image"], "answer": ["image"], "ground": ["image"]}
"""Kinds of files by task of a model that can do everything."""


class Generator:
    """A generative model by name, for any number of threads.

    Args:
        options: device and dtype, as for `load_generator`.

    Raises:
        UserError: no such model, or one that writes nothing.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options
        self.tasks = tasks_of(name)
        self._lock = threading.Lock()

    @cached_property
    def loaded(self) -> Any:
        from onepeace.generative.generator import load_generator

        return load_generator(self.name, **self.options)

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
                return self.loaded.caption([value])[0]
            return getattr(self.loaded, task)([value[kind]], [words])[0]


def tasks_of(name: str) -> Mapping[str, Sequence[str]]:
    """The kinds of files that a model reads by task, as its folder says.

    A model that may have to be downloaded would keep the client waiting: it is taken for one that can do everything.

    Raises:
        UserError: no such model, or one that writes nothing.
    """
    from onepeace.generative.generator import writes
    from onepeace.generative.tasks import FILE, read_tasks
    from onepeace.hub.architectures import architecture
    from onepeace.hub.folder import read_config
    from onepeace.hub.registry import RELEASED, find
    from onepeace.hub.resolve import resolve

    path, released = Path(name).expanduser(), find(name)
    on_hub = released is None and len(path.parts) == 2 and not path.is_absolute()
    if path.exists() or not (released or on_hub):
        folder = resolve(name)
        config = read_config(folder)
        if writes(config):
            rows = read_tasks(*([folder / FILE] if (folder / FILE).is_file() else []))
            able = {task: kinds for task, kinds in TASKS.items() if task in rows and rows[task].image is not None}
            if architecture(config.architecture).generates:
                return able
            on = next(head["on"] for head in config.model.heads.values() if head["kind"] == "caption")
            return {task: on for task in able if not rows[task].fields}  # it reads no words
    elif on_hub or RELEASED[str(released)].generates:
        return TASKS
    raise UserError(f"{name}: writes nothing; name a model that does, as tiny-captions")
