"""What headers say about how long a file is, and what they cannot."""

import io
import struct

import pytest

from onepeace.errors import UserError
from onepeace.files.container import EBML, SEGMENT, cut_off, open_container


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


BODY = bytes(5000)
WHOLE = {
    "mp4": box(b"ftyp", b"isom") + box(b"mdat", BODY) + box(b"moov", bytes(2000)),
    "avi": b"RIFF" + struct.pack("<I", 4 + len(BODY)) + b"AVI " + BODY,
    "matroska": EBML + b"\x81\0" + SEGMENT + struct.pack(">Q", 1 << 56 | len(BODY)) + BODY,
    "large box": box(b"ftyp", b"qt  ") + struct.pack(">I4sQ", 1, b"mdat", 16 + len(BODY)) + BODY,
}
UNKNOWN = {
    "to the end": box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"mdat") + BODY,
    "trailing text": WHOLE["mp4"] + b"Samsung trailer " * 200,
    "wave": b"RIFF" + struct.pack("<I", 50_000) + b"WAVE" + BODY,
    "avi that was not finished": b"RIFF\xff\xff\xff\xffAVI " + BODY,
    "matroska, live": EBML + b"\x81\0" + SEGMENT + b"\x01" + b"\xff" * 7 + BODY,
    "matroska of 6 bytes": EBML + b"\x01\0",
    "text": b"hello " * 1000,
    "empty": b"",
}


@pytest.mark.parametrize("kind", WHOLE)
def test_missing_bytes_are_counted(kind):
    whole = WHOLE[kind]
    file = io.BytesIO(whole)
    file.seek(7)
    assert cut_off(file) is None
    assert file.tell() == 0
    assert cut_off(io.BytesIO(whole[:-1000])) is None, "many headers are off by a little"
    assert cut_off(io.BytesIO(whole[:-1500])) == f"its header says {len(whole)} bytes, {len(whole) - 1500} are there"


@pytest.mark.parametrize("kind", UNKNOWN)
def test_header_that_does_not_tell_is_no_reason_to_refuse(kind):
    for count in (0, 100):
        assert cut_off(io.BytesIO(UNKNOWN[kind][: max(0, len(UNKNOWN[kind]) - count)])) is None


def test_file_that_the_system_does_not_open_is_an_error(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(UserError, match=r"^a\.mp4: cannot be opened \(.+\)$"), open_container(tmp_path, "a.mp4"):
        pass


def test_endless_row_of_boxes_ends():
    assert cut_off(io.BytesIO(box(b"free", b"") * 200_000)) is None
