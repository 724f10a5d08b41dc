"""Public data sets as they are downloaded, one file for each layout, and tables and folders of one's own (pairs.py)."""

from onepeace.datasets.ade20k import ADE20K
from onepeace.datasets.audiocaps import AudioCaps
from onepeace.datasets.avqa import AVQA
from onepeace.datasets.cifar import Cifar10, Cifar100
from onepeace.datasets.class_folders import AudioFolder, ImageFolder
from onepeace.datasets.clotho import Clotho
from onepeace.datasets.coco import Coco
from onepeace.datasets.coco_detection import CocoDetection
from onepeace.datasets.conceptual_captions import ConceptualCaptions
from onepeace.datasets.emoji import Emoji
from onepeace.datasets.esc50 import ESC50
from onepeace.datasets.flickr8k import Flickr8k
from onepeace.datasets.flickr30k import Flickr30k
from onepeace.datasets.fsd50k import FSD50K
from onepeace.datasets.imagenet import ImageNet
from onepeace.datasets.imagenet_samples import ImageNetSamples
from onepeace.datasets.kinetics import Kinetics
from onepeace.datasets.layout import Layout
from onepeace.datasets.macs import Macs
from onepeace.datasets.nlvr2 import NLVR2
from onepeace.datasets.onepeace_tsv import OnePeaceTSV
from onepeace.datasets.openclipart import OpenClipart
from onepeace.datasets.refcoco import RefCOCO, RefCOCOg, RefCOCOPlus
from onepeace.datasets.snli_ve import SnliVE
from onepeace.datasets.sound_events import DESED, SoundEvents
from onepeace.datasets.tiny_imagenet import TinyImageNet
from onepeace.datasets.tuxpaint import TuxPaint
from onepeace.datasets.urbansound8k import UrbanSound8K
from onepeace.datasets.vggsound import VGGSound
from onepeace.datasets.vqav2 import VQAv2
from onepeace.datasets.words import Words

LAYOUTS: dict[str, Layout] = {
    "tiny_imagenet": TinyImageNet(),
    "imagenet_samples": ImageNetSamples(),
    "imagenet": ImageNet(),
    "cifar10": Cifar10(),
    "cifar100": Cifar100(),
    "flickr8k": Flickr8k(),
    "flickr30k": Flickr30k(),
    "coco": Coco(),
    "conceptual_captions": ConceptualCaptions(),
    "emoji": Emoji(),
    "openclipart": OpenClipart(),
    "tuxpaint": TuxPaint(),
    "esc50": ESC50(),
    "audiocaps": AudioCaps(),
    "clotho": Clotho(),
    "macs": Macs(),
    "vggsound": VGGSound(),
    "urbansound8k": UrbanSound8K(),
    "fsd50k": FSD50K(),
    "words": Words(),
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
    "image_folder": ImageFolder(),
    "audio_folder": AudioFolder(),
    "kinetics": Kinetics(),
    "onepeace_tsv": OnePeaceTSV(),
}
"""By name, as `onepeace shards --layout NAME` takes them; `LAYOUTS["mine"] = Mine()` adds one."""
