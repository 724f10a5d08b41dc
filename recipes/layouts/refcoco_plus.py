"""RefCOCO+ (Yu, Poirson, Yang, Berg, Berg, ECCV 2016)."""

from dataclasses import dataclass

from refcoco import RefCOCO


@dataclass(frozen=True)
class RefCOCOPlus(RefCOCO):
    """RefCOCO+: expressions that name one object in a photograph of COCO without saying where it is, from
    github.com/lichengunc/refer.

    SOURCE holds a folder refcoco+ with "refs(unc).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    key = "refcocoplus"
    prefix = "refcoco_plus"
    folder_name = "refcoco+"


layout = RefCOCOPlus()
