"""The model that a run embeds with, loaded when it is first needed; or an engine in its place."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from onepeace.index.plugin import plugin
from onepeace.index.report import Report
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

COMPILE_FROM = 5000
"""Number of new files from which on a wide model is compiled: this takes 20 s to a minute, and saves a seventh."""


@dataclass(frozen=True)
class Settings:
    """Options of `build` and `update`, which documents them."""

    device: str | None = None
    dtype: str = "auto"
    engine: str | None = None
    store: str | None = None
    batch_size: int = 32
    progress: bool | None = None


@contextmanager
def model_on_demand(name: str, settings: Settings, num_new: int, report: Report) -> "Iterator[Callable[[], Embedder]]":
    """Context of a function that loads the model, or starts the engine, when it is first called.

    Args:
        num_new: number of files to embed.
        report: gets the model, if it was loaded in this process.
    """
    with ExitStack() as stack:

        @cache
        def load() -> "Embedder":
            if settings.engine is None:
                report.embedder = load_model(name, settings, num_new)
                return report.embedder
            status(f"loading the model {name} ...")
            open_engine = plugin(settings.engine, "open_engine")
            engine = open_engine(settings.engine, name, settings.device, settings.dtype)
            return stack.enter_context(closing(engine))

        yield load


def load_model(name: str, settings: Settings, num_new: int) -> "Embedder":
    """Load the model; a wide one is compiled if there are many files to embed."""
    from onepeace import compiling
    from onepeace.embed import embedder

    status(f"loading the model {name} ...")
    model = embedder.load(name, device=settings.device, dtype=settings.dtype)
    if num_new >= COMPILE_FROM and model.module.config.dim >= compiling.MIN_WIDTH:
        status("compiling the model's blocks, about a minute ...")
        compiling.compile_blocks(model.module)
    return model
