"""A generator behind the tools: what it can do, known before it is loaded."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.generative.tasks import FILE, read_tasks
from onepeace.hub.architectures import architecture
from onepeace.hub.folder import read_config
from onepeace.hub.registry import RELEASED, find
from onepeace.hub.resolve import resolve
from onepeace.serve.tools import TAKES


class Later:
    """A generator that is loaded with the first question, so that the server answers at once."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    @cached_property
    def loaded(self) -> Any:
        from onepeace.generative.generator import load_generator

        return load_generator(self.name, **self.options)

    def caption(self, images: Any, **options: Any) -> Any:
        return self.loaded.caption(images, **options)

    def answer(self, images: Any, questions: Any) -> Any:
        return self.loaded.answer(images, questions)

    def ground(self, images: Any, phrases: Any) -> Any:
        return self.loaded.ground(images, phrases)


def takes(name: str) -> Mapping[str, Sequence[Any]]:
    """The kinds of files that a generator takes, by tool, as its folder says.

    A model that may have to be downloaded would keep the client waiting: it is taken for one that can do everything.

    Raises:
        UserError: no such model, or one that writes nothing.
    """
    from onepeace.generative.generator import writes

    path, released = Path(name).expanduser(), find(name)
    on_hub = released is None and len(path.parts) == 2 and not path.is_absolute()
    if path.exists() or not (released or on_hub):
        folder = resolve(name)
        config = read_config(folder)
        if writes(config):
            rows = read_tasks(*([folder / FILE] if (folder / FILE).is_file() else []))
            able = {tool: kinds for tool, kinds in TAKES.items() if tool in rows and rows[tool].image is not None}
            if architecture(config.architecture).generates:
                return able
            on = next(head["on"] for head in config.model.heads.values() if head["kind"] == "caption")
            return {tool: on for tool in able if not rows[tool].fields}  # it reads no words
    elif on_hub or RELEASED[str(released)].generates:
        return TAKES
    raise UserError(f"{name}: writes nothing; name a model that does, as tiny-captions")
