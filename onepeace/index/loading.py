"""The model that a run embeds with, loaded when it is first needed; or an engine in its place."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from onepeace.errors import UsageError
from onepeace.index.identity import Model, is_name
from onepeace.index.plugin import plugin
from onepeace.index.report import Report
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

COMPILE_FROM = 5000
"""Number of new files from which a wide model is compiled: this takes 20 s to a minute, and saves a seventh."""


@dataclass(frozen=True)
class Settings:
    """Options of `build` and `update`, which documents them."""

    device: str | None = None
    dtype: str = "auto"
    engine: str | None = None
    store: str | None = None
    batch_size: int = 32
    progress: bool | None = None

    def checked_for(self, model: Model | None) -> "Settings":
        """These settings, if they have an effect on a model.

        Raises:
            UsageError: the model is an `Embedder`, which is loaded already.
        """
        is_loaded = not (model is None or is_name(model))
        if is_loaded and (self.device is not None or self.dtype != "auto"):
            raise UsageError("device and dtype are those of the Embedder; leave them out")
        if is_loaded and self.engine is not None:
            raise UsageError(
                f"the engine {self.engine} loads a model by its name; give a name in place of the Embedder"
            )
        return self


@contextmanager
def model_on_demand(
    model: Model, settings: Settings, num_new: int, report: Report
) -> "Iterator[Callable[[], Embedder]]":
    """Context of a function that loads the model, or starts the engine, when it is first called.

    Args:
        num_new: number of files to embed.
        report: gets the model, if it is used in this process.
    """
    with ExitStack() as stack:

        @cache
        def load() -> "Embedder":
            if not is_name(model):
                report.embedder = model
                return model
            if settings.engine is None:
                report.embedder = load_model(model, settings, num_new)
                return report.embedder
            status(f"loading the model {model} ...")
            open_engine = plugin(settings.engine, "open_engine")
            engine = open_engine(settings.engine, model, settings.device, settings.dtype)
            return stack.enter_context(closing(engine))

        yield load


def load_model(name: str | os.PathLike[str], settings: Settings, num_new: int) -> "Embedder":
    """Load the model; a wide one is compiled if there are many files to embed."""
    from onepeace import compiling
    from onepeace.embed import embedder

    status(f"loading the model {name} ...")
    model = embedder.load(name, device=settings.device, dtype=settings.dtype)
    if num_new >= COMPILE_FROM and compiling.width(model.module) >= compiling.MIN_WIDTH:
        status("compiling the model's blocks, about a minute ...")
        compiling.compile_blocks(model.encoder)
    return model
