"""Public test sets by name, as `onepeace evaluate NAME` measures them: protocol, split, prompts.

The folder holds the data set as it is downloaded, or is in CLIP_benchmark's layout (layouts.py), which is told by
test/nshards.txt. Sentences for class names are the 80 of OpenAI for ImageNet and the 18 of CLIP for CIFAR,
both with OpenAI's names; for sounds those of `TEMPLATES`. A folder in CLIP_benchmark's layout brings its own.

Retrieval takes the test split of Karpathy (COCO: the first five captions of each picture), AudioCaps' and Clotho's
(evaluation), with every caption a query. An empty caption is no query: Clotho's tables have none, so that its 1,045
sounds have 5,225 queries. mteb's Clotho cuts captions at full stops and has 5,585, of which 905 are empty; its figures
are not comparable.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from onepeace.config import Options
from onepeace.errors import UserError
from onepeace.evaluate.layouts import CLIP_BENCHMARK, templates

LOOKS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
CIFAR_TEMPLATES = tuple(
    template
    for article in ("a", "the")
    for template in (
        *(f"a {look}photo of {article} {{}}." for look in LOOKS),
        *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
    )
)
"""github.com/openai/CLIP/blob/main/data/prompts.md, CIFAR10 and CIFAR100."""


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
    learned: Literal["train", "folds"] | None = None
    """Source of what probes learn from: the training data, or the other folds of the test data; None: no probes."""
    sentences: Callable[[], Sequence[str]] = tuple
    """Gives the sentences for class names; none for the default ones."""


SETS = {
    "coco": Named("retrieval", "image", "karpathy_coco", "test"),
    "flickr8k": Named("retrieval", "image", "karpathy_flickr8k", "test"),
    "flickr30k": Named("retrieval", "image", "karpathy_flickr30k", "test"),
    "imagenet": Named("zero_shot", "image", "imagenet", learned="train", sentences=_openai_templates),
    "cifar10": Named("zero_shot", "image", "cifar10", learned="train", sentences=lambda: CIFAR_TEMPLATES),
    "cifar100": Named("zero_shot", "image", "cifar100", learned="train", sentences=lambda: CIFAR_TEMPLATES),
    "audiocaps": Named("retrieval", "audio", "audiocaps"),
    "clotho": Named("retrieval", "audio", "clotho"),
    "esc50": Named("zero_shot", "audio", "esc50", "all", learned="folds"),
    "urbansound8k": Named("zero_shot", "audio", "urbansound8k", "all", learned="folds"),
    "vggsound": Named("zero_shot", "audio", "vggsound", learned="train"),
    "fsd50k": Named("multi_label", "audio", "fsd50k"),
}
"""Sets by the name on the command line; `SETS["mine"] = Named(...)` adds one."""

OPTIONS: dict[str, Options] = {"retrieval": {"at": [1, 5, 10], "map_at": [10], "median_rank": True}}
"""Options beyond a protocol's defaults."""


def named_sets(name: str, root: Path, *, probe: bool = False) -> dict[str, Options]:
    """The sets of an evaluation recipe that measure the public set `name` in the folder `root`.

    Args:
        probe: also a linear probe and kNN on frozen vectors. UserError if the set has none.
    """
    known = SETS[name]
    if (root / "test" / "nshards.txt").is_file():
        known = known._replace(layout=CLIP_BENCHMARK, split="test", learned=known.learned and "train")
    items = {"modality": known.modality, "layout": known.layout, "split": known.split}
    options: Options = {"protocol": known.protocol, **items, **OPTIONS.get(known.protocol, {})}
    if (sentences := known.sentences()) and not templates(root, known.layout):
        options["templates"] = [*sentences]
    sets = {name: options}
    if probe:
        if known.learned is None:
            raise UserError(f"{name} has no probe; it is a set for {known.protocol.replace('_', ' ')}")
        train = {"train": {**items, "split": "train"}} if known.learned == "train" else {}
        sets[f"{name} probe"] = {"protocol": "probe", **items, **train}
    return sets
