"""The released checkpoints by name, and downloads with huggingface_hub: a file over https, resumed after an
interruption, or the files of a repository.

The authors of ONE-PEACE and OFA publish neither sizes nor hashes; downloads are checked against the length that the
server states. Networks for detection, segmentation and image generation, whose parts this library does not have, and
archives are left out.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import sync
from onepeace.files.source import start_request, within

TIMEOUT = 60.0
"""Seconds in which a server must say what it has."""
STALLED = 1800.0
"""Seconds in which a download must grow: it is written 10 MB at a time, which takes that long at 6 kB a second."""
HUB_TIMEOUT = 10.0
"""Seconds in which the Hugging Face Hub must answer; its files are those of the cache otherwise."""


def fetch(url: str, path: Path, *, copies: int = 1) -> Path:
    """Download `url` to `path` unless that exists; shows a progress bar if stderr is a terminal.

    Data goes to a .part file in the same folder, named after the server's ETag, so that a later call resumes the
    download if the server still has the same file. It is renamed once it has the length that the server stated.

    Args:
        copies: how many times its size is needed on the disk: 2 for a file that is converted before it is deleted.

    Raises:
        UserError: no network, refused address, wrong length, full disk; the message says what to do.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get

    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")):
        raise UserError("only https addresses are downloaded", where=url)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        metadata = within(TIMEOUT, partial(get_hf_file_metadata, url, token=False))
        if metadata.size is None or metadata.etag is None:
            raise UserError(
                "the server sends no size or ETag, so an incomplete download could not be detected", where=url
            )
        part = path.with_name(f"{path.name}.{hashlib.sha256(metadata.etag.encode()).hexdigest()[:16]}.part")
        with open(part, "ab") as file:
            have, free = file.tell(), shutil.disk_usage(path.parent).free
            needed = copies * metadata.size - have
            if needed > free:
                raise UserError(f"{free} bytes free, {needed} needed", where=path.parent)
            options: dict[str, Any] = {"expected_size": metadata.size, "displayed_filename": path.name}
            while_growing(part, partial(http_get, url, file, resume_size=have, **options))
    except UserError:
        raise
    except Exception as error:  # huggingface_hub raises errors of several HTTP packages
        raise UserError(
            f"not downloaded ({one_line(error)[:200]}); check the network, or fetch it elsewhere and save it as "
            f"{path}, or make a model folder of it: onepeace convert {path.name} -o OUT",
            where=url,
        ) from error
    sync(part)
    os.replace(part, path)
    sync(path.parent)
    return path


def while_growing(path: Path, download: Callable[[], None]) -> None:
    """Call what writes a file; a server that sends its header a byte at a time passes every limit for one read.

    Raises:
        TimeoutError: the file has not grown for `STALLED` seconds; the call then goes on in its thread, for nothing.
    """
    done = start_request(download)
    size = -1
    while not futures.wait([done], STALLED).done:
        if path.stat().st_size == size:
            raise TimeoutError(f"no data for {STALLED:.0f} seconds")
        size = path.stat().st_size
    done.result()


def is_hub_reachable() -> bool:
    """Whether the Hugging Face Hub answers at all, asked once and not for minutes, as its own downloads do."""
    from huggingface_hub import constants, get_session

    try:
        within(HUB_TIMEOUT, partial(get_session().head, constants.ENDPOINT, timeout=HUB_TIMEOUT))
    except Exception:  # of several HTTP packages
        return False
    return True


def from_hub(
    repository: str,
    patterns: list[str],
    what: str,
    remedy: str,
    cache: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Path:
    """Local folder of a Hugging Face repository's files, downloaded if needed; UserError names `what` and `remedy`."""
    from huggingface_hub import snapshot_download

    try:
        folder = None if cache is None else Path(cache)
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                cache_dir=folder,
                local_files_only=not is_hub_reachable(),
            )
        )
    except Exception as error:  # huggingface_hub raises errors of several HTTP packages
        reason = one_line(error)[:200]
        raise UserError(
            f"{what} ({repository} of the Hugging Face Hub) could not be fetched ({reason}); {remedy}"
        ) from error


_HOST = "https://one-peace-shanghai.oss-accelerate.aliyuncs.com"
_OFA_HOST = "https://ofa-beijing.oss-cn-beijing.aliyuncs.com/checkpoints"


@dataclass(frozen=True)
class Released:
    """One released file."""

    file: str
    modalities: tuple[str, ...]
    about: str
    generates: bool = False
    """Whether it is an OFA model, which onepeace.load_generator loads."""

    @property
    def url(self) -> str:
        if self.generates:
            return f"{_OFA_HOST}/{self.file}"
        folder = "" if self.file == "one-peace.pt" else "/one_peace_checkpoints"
        return f"{_HOST}{folder}/{self.file.replace('+', '%2B')}"


_ALL = ("text", "image", "audio")
_VL = ("text", "image")
_AL = ("text", "audio")

RELEASED = {
    "one-peace": Released("one-peace.pt", _ALL, "pretrained: text, image and audio in one space"),
    "one-peace-vision": Released("one-peace-vision.pkl", ("image",), "vision branch of the pretrained model"),
    "one-peace-imagenet-384": Released("onepeace_ft_21kto1k_384.pth", ("image",), "ImageNet-1k classes, 384 px"),
    "one-peace-imagenet-512": Released("onepeace_ft_21kto1k_512.pth", ("image",), "ImageNet-1k classes, 512 px"),
    "one-peace-coco": Released("finetune_coco.pt", _VL, "image-text retrieval, COCO"),
    "one-peace-flickr": Released("finetune_flickr.pt", _VL, "image-text retrieval, Flickr30K"),
    "one-peace-audio-retrieval": Released("finetune_al_retrieval.pt", _AL, "audio-text retrieval, AudioCaps, Clotho"),
    "one-peace-vqa": Released("finetune_vqa.pt", _VL, "visual question answering, VQAv2"),
    "one-peace-nlvr2": Released("finetune_nlvr2.pt", _VL, "statements about two pictures, NLVR2"),
    "one-peace-refcoco": Released("finetune_refcoco.pt", _VL, "grounding, RefCOCO"),
    "one-peace-refcoco+": Released("finetune_refcoco+.pt", _VL, "grounding, RefCOCO+"),
    "one-peace-refcocog": Released("finetune_refcocog.pt", _VL, "grounding, RefCOCOg"),
    "one-peace-avqa": Released("finetune_aqa.pt", _AL, "audio question answering, AVQA"),
    "one-peace-vggsound": Released("finetune_vggsound.pt", ("audio",), "309 sound classes, VGGSound"),
    "one-peace-fsd50k": Released("finetune_fsd50k.pt", ("audio",), "200 sound classes, FSD50K"),
    "one-peace-video-k400": Released("onepeace_video_k400.pth", ("video",), "video classes, Kinetics-400"),
}  # fmt: skip

# https://github.com/OFA-Sys/OFA/blob/main/checkpoints.md
_OFA = {
    "ofa-tiny": ("ofa_tiny.pt", "pretrained, 33 M parameters"),
    "ofa-medium": ("ofa_medium.pt", "pretrained, 93 M parameters"),
    "ofa-base": ("ofa_base.pt", "pretrained, 182 M parameters"),
    "ofa-large": ("ofa_large.pt", "pretrained, 473 M parameters"),
    "ofa-huge": ("ofa_huge.pt", "pretrained, 929 M parameters"),
    "ofa-base-caption": ("caption_base_best.pt", "captions, COCO"),
    "ofa-large-caption": ("caption_large_best_clean.pt", "captions, COCO"),
    "ofa-large-caption-stage1": ("caption_stage1_best.pt", "captions, COCO, before CIDEr optimisation"),
    "ofa-huge-caption": ("caption_huge_best.pt", "captions, COCO"),
    "ofa-base-vqa": ("vqa_base_best.pt", "visual question answering, VQAv2"),
    "ofa-large-vqa": ("vqa_large_best.pt", "visual question answering, VQAv2"),
    "ofa-huge-vqa": ("vqa_huge_best.pt", "visual question answering, VQAv2"),
    "ofa-base-refcoco": ("refcoco_base_best.pt", "grounding, RefCOCO"),
    "ofa-base-refcoco+": ("refcocoplus_base_best.pt", "grounding, RefCOCO+"),
    "ofa-base-refcocog": ("refcocog_base_best.pt", "grounding, RefCOCOg"),
    "ofa-large-refcoco": ("refcoco_large_best.pt", "grounding, RefCOCO"),
    "ofa-large-refcoco+": ("refcocoplus_large_best.pt", "grounding, RefCOCO+"),
    "ofa-large-refcocog": ("refcocog_large_best.pt", "grounding, RefCOCOg"),
    "ofa-base-snli-ve": ("snli_ve_base_best.pt", "visual entailment, SNLI-VE"),
    "ofa-large-snli-ve": ("snli_ve_large_best.pt", "visual entailment, SNLI-VE"),
    "ofa-large-imagenet": ("imagenet_1k_large_best.pt", "ImageNet-1k classes, written out"),
    "ofa-large-gigaword": ("gigaword_large_best.pt", "summaries, Gigaword"),
}
RELEASED |= {name: Released(file, _VL, about, generates=True) for name, (file, about) in _OFA.items()}
