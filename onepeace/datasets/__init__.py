"""Public datasets in their downloaded form, one file per layout, and tables and folders of users (pairs.py)."""

from onepeace.datasets.ade20k import ADE20K
from onepeace.datasets.audiocaps import AudioCaps
from onepeace.datasets.avqa import AVQA
from onepeace.datasets.clotho import Clotho
from onepeace.datasets.coco import Coco, CocoDetection
from onepeace.datasets.esc50 import ESC50
from onepeace.datasets.flickr8k import Flickr8k
from onepeace.datasets.fsd50k import FSD50K
from onepeace.datasets.imagenet import ImageNet
from onepeace.datasets.karpathy import CocoKarpathy, Flickr30k
from onepeace.datasets.kinetics import Kinetics
from onepeace.datasets.layout import Layout
from onepeace.datasets.nlvr2 import NLVR2
from onepeace.datasets.refcoco import RefCOCO, RefCOCOg, RefCOCOPlus
from onepeace.datasets.snli_ve import SnliVE
from onepeace.datasets.sound_events import DESED, SoundEvents
from onepeace.datasets.tiny_imagenet import TinyImageNet
from onepeace.datasets.urbansound8k import UrbanSound8K
from onepeace.datasets.vggsound import VGGSound
from onepeace.datasets.vqav2 import VQAv2

LAYOUTS: dict[str, Layout] = {
    "tiny_imagenet": TinyImageNet(),
    "imagenet": ImageNet(),
    "flickr8k": Flickr8k(),
    "flickr30k": Flickr30k(),
    "coco": Coco(),
    "coco_karpathy": CocoKarpathy(),
    "esc50": ESC50(),
    "audiocaps": AudioCaps(),
    "clotho": Clotho(),
    "vggsound": VGGSound(),
    "urbansound8k": UrbanSound8K(),
    "fsd50k": FSD50K(),
    "vqav2": VQAv2(),
    "nlvr2": NLVR2(),
    "snli_ve": SnliVE(),
    "refcoco": RefCOCO(),
    "refcoco_plus": RefCOCOPlus(),
    "refcocog": RefCOCOg(),
    "coco_detection": CocoDetection(),
    "ade20k": ADE20K(),
    "avqa": AVQA(),
    "desed": DESED(),
    "sound_events": SoundEvents(),
    "kinetics": Kinetics(),
}
"""Layouts by name for `onepeace shards --layout NAME`; `LAYOUTS["mine"] = Mine()` in FILE.py adds one, with
`--import FILE.py` on the command line."""
