"""What headers say about how long a file is, and what they cannot."""

import io
import struct

import pytest

from onepeace.errors import UserError
from onepeace.files.container import cut_off, open_container


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def matroska(size: bytes, content: bytes) -> bytes:
    return b"\x1a\x45\xdf\xa3\x84\x42\x86\x81\x01\x18\x53\x80\x67" + size + content


BODY = bytes(5000)
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(14) + bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
WHOLE = {
    "mp4": box(b"ftyp", b"isom") + box(b"mdat", BODY) + box(b"moov", bytes(2000)),
    "large box": box(b"ftyp", b"qt  ") + struct.pack(">I4sQ", 1, b"mdat", 16 + len(BODY)) + BODY,
    "matroska": matroska(b"\x01" + (5000).to_bytes(7, "big"), BODY),
    "short size": matroska(b"\x53\x88", BODY),
    "avi": b"RIFF" + struct.pack("<I", 5004) + b"AVI " + BODY,
    "asf": ASF + bytes(24) + struct.pack("<Q", len(ASF) + 5032) + BODY,
}
UNKNOWN = {
    "to the end": box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"mdat") + BODY,
    "trailing text": WHOLE["mp4"] + b"Samsung trailer " * 200,
    "matroska live": matroska(b"\x01" + b"\xff" * 7, BODY),
    "matroska short live": matroska(b"\xff", BODY),
    "avi live": b"RIFF" + b"\xff" * 4 + b"AVI " + BODY,
    "asf live": ASF + bytes(24) + bytes(8) + BODY,
    "wave": b"RIFF" + struct.pack("<I", 50_000) + b"WAVE" + BODY,
    "text": b"hello " * 1000,
    "empty": b"",
    "tiny": b"\x1a\x45\xdf\xa3" + bytes(4) + b"\x18\x53\x80\x67",
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
