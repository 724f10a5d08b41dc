"""Folder of files that the package can recreate or download again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$ONEPEACE_CACHE, or onepeace in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if folder := os.environ.get("ONEPEACE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onepeace"
