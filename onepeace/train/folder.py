"""Model folders by name."""

from pathlib import Path


def model_folder(name: str) -> Path:
    """Folder of a model, given this folder, that of a finished run, or the name of a bundled or released model."""
    folder = Path(name)
    if not folder.is_dir():
        from onepeace.hub import registry
        from onepeace.hub.resolve import BUNDLED_NAMES, resolve

        if name in BUNDLED_NAMES or registry.find(name):
            return resolve(name)
    return folder / "model" if not (folder / "config.yaml").exists() and (folder / "model").is_dir() else folder
