"""SQLite's log of committed transactions (-wal): which part of it is hidden by damage.

SQLite reads the log up to the first frame whose checksum does not match, as a writer that was killed leaves an
incomplete frame at its end. If a committed frame follows such a frame, the log is damaged there, which SQLite does
not report. The formats are those of https://sqlite.org/walformat.html.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HEADER = struct.Struct(">8I")
"""Of the log: magic number, version, bytes of a page, number of the checkpoint, two salts, two checksums."""
FRAME = struct.Struct(">6I")
"""Header of a frame: number of the page, pages of the database if a commit ends here, two salts, two checksums."""
MAX_FRAME = 16
"""Place in the shared memory (-shm) of the number of frames that SQLite reads, in the byte order of the machine."""
COUNT = struct.Struct("=I")
WAIT = 0.1
"""Seconds in which a writer that has just committed a frame announces it."""


def hides_commits(database: Path) -> bool:
    """Whether the log of a database has committed transactions that SQLite does not read.

    A connection to the database must be open, so that its shared memory is up to date.

    Raises:
        OSError: the log cannot be read.
    """
    if not _has_unread_commit(database):
        return False
    time.sleep(WAIT)
    return _has_unread_commit(database)


def _has_unread_commit(database: Path) -> bool:
    log = Path(f"{database}-wal")
    if not log.exists() or log.stat().st_size < HEADER.size:
        return False
    with open(log, "rb") as file:
        header = file.read(HEADER.size)
        if not _is_intact(header):
            return log.stat().st_size > HEADER.size
        _, _, page_bytes, _, *log_salts, _, _ = HEADER.unpack(header)
        last_commit = 0
        for frame, salts in _commits(file, page_bytes):
            if salts == log_salts:  # else it is left over from before the last checkpoint
                last_commit = frame
    return last_commit > _frames_read(database)


def _commits(file: BinaryIO, page_bytes: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the number, from 1, and the salts of each frame that ends a transaction."""
    frame = 0
    while True:
        header = file.read(FRAME.size)
        if len(header) < FRAME.size:
            return
        frame += 1
        _, num_pages, *salts, _, _ = FRAME.unpack(header)
        if num_pages:
            yield frame, salts
        file.seek(page_bytes, os.SEEK_CUR)


def _frames_read(database: Path) -> int:
    memory = Path(f"{database}-shm")
    if not memory.exists():
        return 0
    content = memory.read_bytes()[MAX_FRAME : MAX_FRAME + COUNT.size]
    if len(content) < COUNT.size:
        return 0
    (num_frames,) = COUNT.unpack(content)
    return num_frames


def _is_intact(header: bytes) -> bool:
    """Whether the header of a log has its checksum, computed over its words in the byte order of its magic number."""
    order = ">" if header[3] & 1 else "<"
    words = struct.unpack(f"{order}6I", header[:24])
    first = 0
    second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack(">2I", header[24:])
