"""Public test sets by name, as `onepeace evaluate NAME` measures them: protocol, split, prompts.

The folder holds the data set as it is downloaded. Sentences for class names are the 80 of OpenAI for ImageNet, with
OpenAI's names; for sounds those of `TEMPLATES`.

Retrieval takes the test split of Karpathy (COCO: the first five captions of each picture), AudioCaps' and Clotho's
(evaluation), with every caption a query. An empty caption is no query: Clotho's tables have none, so that its 1,045
sounds have 5,225 queries. mteb's Clotho cuts captions at full stops and has 5,585, of which 905 are empty; its figures
are not comparable.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onepeace.config import Options


def _openai_templates() -> tuple[str, ...]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


class Named(NamedTuple):
    """Recipe of a public set."""

    protocol: str
    modality: str
    layout: str
    split: str = "val"
    """The test data."""
    sentences: Callable[[], Sequence[str]] = tuple
    """Gives the sentences for class names; none for the default ones."""


SETS = {
    "coco": Named("retrieval", "image", "karpathy_coco", "test"),
    "flickr8k": Named("retrieval", "image", "karpathy_flickr8k", "test"),
    "flickr30k": Named("retrieval", "image", "karpathy_flickr30k", "test"),
    "imagenet": Named("zero_shot", "image", "imagenet", sentences=_openai_templates),
    "audiocaps": Named("retrieval", "audio", "audiocaps"),
    "clotho": Named("retrieval", "audio", "clotho"),
    "esc50": Named("zero_shot", "audio", "esc50", "all"),
    "urbansound8k": Named("zero_shot", "audio", "urbansound8k", "all"),
    "vggsound": Named("zero_shot", "audio", "vggsound"),
    "fsd50k": Named("multi_label", "audio", "fsd50k"),
}
"""Sets by the name on the command line; `SETS["mine"] = Named(...)` adds one."""


def named_set(name: str) -> Options:
    """The set of an evaluation recipe that measures the public set `name`."""
    known = SETS[name]
    options: Options = {"protocol": known.protocol, "modality": known.modality}
    options |= {"layout": known.layout, "split": known.split}
    sentences = known.sentences()
    return {**options, "templates": [*sentences]} if sentences else options
