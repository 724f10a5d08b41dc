"""RefCOCOg (Mao et al., CVPR 2016)."""

from dataclasses import dataclass

from refcoco import RefCOCO

from onepeace.datasets.layout import option


@dataclass(frozen=True)
class RefCOCOg(RefCOCO):
    """RefCOCOg: longer expressions that name one object in a photograph of COCO, from github.com/lichengunc/refer.

    SOURCE holds a folder refcocog with "refs(umd).p" and instances.json, and COCO's photographs in a folder train2014,
    at any depth. Otherwise as refcoco.
    """

    key = "refcocog"
    prefix = "refcocog"
    folder_name = "refcocog"
    val: tuple[str, ...] = option(("val", "test"), "official splits that are validation data")
    split_by: str = option("umd", "who split it: umd or google, as the name of the list says")


layout = RefCOCOg()
