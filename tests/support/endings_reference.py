"""docs/reference/endings.md: endings of the files that are read, as the tables have them; `make readme` writes it."""

from collections.abc import Iterable

from support.readme import ROOT

from onepeace.files.picture import PICTURE_SUFFIXES, RAW_SUFFIXES
from onepeace.files.video import VIDEO_SUFFIXES
from onepeace.processors.endings import ENDINGS

PAGE = ROOT / "docs" / "reference" / "endings.md"
TEXT = """\
# File endings

In folders, files are found by these endings, in capitals too (`make readme` writes this page). A file that is named
itself may have any ending, if its first bytes tell a picture, sound or video. Others are counted by their ending.

| kind | endings |
| --- | --- |
| picture | {pictures} |
| camera raw (extra `media`) | {raw} |
| sound | {sounds} |
| video (extra `media`) | {videos} |
| text | {texts} |

Texts are UTF-8 (or UTF-16 with a byte order mark, as Windows writes it), at most 1 MiB, and read as they are: no
mark-up is taken out. Of a video, pictures and sound are read.
HEIC, AAC, M4A and WMA need the extra `media`. Tables (.csv, .tsv, .jsonl) and shards (.tar, .tar.gz) are read where
they are named, not in folders.
"""


def page() -> str:
    """The text of the page."""
    return TEXT.format(
        pictures=_listed(PICTURE_SUFFIXES),
        raw=_listed(RAW_SUFFIXES),
        sounds=_listed(ENDINGS["audio"] - VIDEO_SUFFIXES),
        videos=_listed(VIDEO_SUFFIXES),
        texts=_listed(ENDINGS["text"]),
    )


def _listed(endings: Iterable[str]) -> str:
    return " ".join(sorted(endings))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
