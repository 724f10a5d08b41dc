"""Every caption that a recipe can draw."""

from collections.abc import Iterable

from onepeace.data.config import DataConfig
from onepeace.data.sample import Sample


def captions_of(config: DataConfig, samples: Iterable[Sample]) -> list[str]:
    """The samples' captions, and the templates filled in for their labels; samples are read once, one at a time."""
    templates = [template for group in config.templates.values() for template in group]
    texts: list[str] = []
    labels: set[str] = set()
    for sample in samples:
        texts += sample.captions
        labels |= {sample.label} if sample.label else set()
    return texts + [template.format(label) for label in sorted(labels) for template in templates]
