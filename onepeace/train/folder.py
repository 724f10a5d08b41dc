"""Model folders by name, and the folder of a run, which one run at a time uses."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onepeace.errors import UserError
from onepeace.files.lock import locked
from onepeace.train import parallel


def model_folder(name: str) -> Path:
    """Folder of a model, given this folder, that of a finished run, or the name of a bundled or released model."""
    folder = Path(name)
    if not folder.is_dir():
        from onepeace.hub import registry
        from onepeace.hub.resolve import BUNDLED_NAMES, resolve

        if name in BUNDLED_NAMES or registry.find(name):
            return resolve(name)
    model = folder / "model"
    if not (folder / "config.yaml").exists() and model.is_dir():
        return model
    return folder


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Context in which no other run can use a folder (`onepeace.files.lock`); the first process locks it for all."""
    with ExitStack() as stack:
        problem = ""
        if parallel.rank() == 0:
            try:
                stack.enter_context(locked(folder))
            except UserError as error:
                problem = str(error)
        problem = parallel.gather_objects(problem)[0]
        if problem:
            raise UserError(problem)
        yield
