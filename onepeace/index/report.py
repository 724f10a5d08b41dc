"""What a run changed in an index, in numbers."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.files.walk import Unreadable

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder


@dataclass
class Report:
    """Counts of what a run changed in an index."""

    added: int = 0
    """Files embedded for the first time."""
    changed: int = 0
    """Files embedded again, because their content changed."""
    copied: int = 0
    """New paths with known content, whose vectors were reused."""
    moved: int = 0
    """Copied files whose old path is gone."""
    unchanged: int = 0
    recaptioned: int = 0
    """Unchanged files whose caption or other columns have changed."""
    removed: int = 0
    kept: list[Path] = field(default_factory=list)
    """Files that are missing, and kept until the next update, as a disk may not be mounted."""
    vanished: int = 0
    """Files whose vectors are gone with the former model of the index, as the files are gone."""
    vectors: int = 0
    """Vectors computed."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded this time, with the reasons."""
    known_problems: int = 0
    """Unchanged files that could not be embedded in an earlier run either."""
    noted: int = 0
    """Files embedded with a note, such as a video that ends early."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not support, by modality."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files with unsupported extensions, by extension, and links that were not followed."""
    seconds: float = 0.0
    embedder: "Embedder | None" = field(default=None, repr=False)
    """The model, if it was loaded in this process: a search after the build need not load it again."""

    @property
    def embedded(self) -> int:
        return self.added + self.changed
