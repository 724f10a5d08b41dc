"""Public test sets by name, as `onepeace evaluate NAME` measures them: protocol, split, prompts.

The folder holds the data set as it is downloaded. Sentences for class names are the 80 of OpenAI for ImageNet, with
OpenAI's names; for sounds those of `TEMPLATES`.

Retrieval takes the test split of Karpathy (COCO: the first five captions of each picture), AudioCaps' and Clotho's
(evaluation), with every caption a query. An empty caption is no query: Clotho's tables have none, so that its 1,045
sounds have 5,225 queries. mteb's Clotho cuts captions at full stops and has 5,585, of which 905 are empty; its figures
are not comparable.
"""

from onepeace.config import Options

SETS = {
    "coco": ("retrieval", "image", "karpathy_coco", "test"),
    "flickr8k": ("retrieval", "image", "karpathy_flickr8k", "test"),
    "flickr30k": ("retrieval", "image", "karpathy_flickr30k", "test"),
    "imagenet": ("zero_shot", "image", "imagenet", "val"),
    "audiocaps": ("retrieval", "audio", "audiocaps", "val"),
    "clotho": ("retrieval", "audio", "clotho", "val"),
    "esc50": ("zero_shot", "audio", "esc50", "all"),
    "urbansound8k": ("zero_shot", "audio", "urbansound8k", "all"),
    "vggsound": ("zero_shot", "audio", "vggsound", "val"),
    "fsd50k": ("multi_label", "audio", "fsd50k", "val"),
}
"""Protocol, modality, layout and split of the test data, by the name on the command line."""


def named_set(name: str) -> Options:
    """The set of an evaluation recipe that measures the public set `name`."""
    options: Options = dict(zip(("protocol", "modality", "layout", "split"), SETS[name], strict=True))
    if name == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        options["templates"] = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return options
