"""MS-COCO captions with the splits of Karpathy and Fei-Fei (CVPR 2015)."""

from dataclasses import dataclass

from flickr30k import Flickr30k

from onepeace.config.reader import Count
from onepeace.datasets.layout import option


@dataclass(frozen=True)
class CocoKarpathy(Flickr30k):
    """MS-COCO captions (Chen et al., arXiv 1504.00325) in Karpathy's splits: 5,000 photographs are validation data.

    SOURCE holds the JPEGs of train2014.zip and val2014.zip, at any depth, and dataset_coco.json (caption_datasets.zip).
    Its test split is validation data, its val split goes nowhere.
    """

    name = "coco_karpathy"
    prefix = "cocok"
    title = "MS-COCO, Karpathy's"
    license = "annotations CC BY 4.0; photographs under their Flickr licences"
    shared = ""
    size: Count = option(480, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train", "restval"), "Karpathy's splits that are training data")


layout = CocoKarpathy()
