"""The model folder that a recipe means."""

from pathlib import Path


def model_folder(name: str) -> Path:
    """A model folder, the model that the run in a folder has written, or a bundled or released one by its name."""
    folder = Path(name)
    if not folder.is_dir():
        from onepeace.hub import registry
        from onepeace.hub.resolve import BUNDLED_NAMES, resolve

        if name in BUNDLED_NAMES or registry.find(name):
            return resolve(name)
    return folder / "model" if not (folder / "config.yaml").exists() and (folder / "model").is_dir() else folder
