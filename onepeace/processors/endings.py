"""File endings of the built-in modalities, available without importing the processors, which import torch."""

from onepeace.files.picture import PICTURE_SUFFIXES, RAW_SUFFIXES
from onepeace.files.video import VIDEO_SUFFIXES

ENDINGS = {
    "image": PICTURE_SUFFIXES | RAW_SUFFIXES,
    "audio": VIDEO_SUFFIXES.union(
        ".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .caf .w64 .rf64 .au .snd .m4a .m4b .m4r .aac .mka "
        ".weba .wma .ac3 .amr .wv".split()
    ),
    "text": frozenset(".txt .text .md .markdown .rst .adoc .org .tex .log".split()),
}
"""Endings by built-in modality, in the order of guessing."""
