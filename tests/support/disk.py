"""A disk that can lose power: what a process wrote, recorded by disk.c, and what may be left of it at each moment.

Of a file that was written and not synced, each write may be there, be there in part, or not. Of a folder that was not
synced, each new, renamed or removed name may be as it was before. What was synced is there.
"""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

HEAD = struct.Struct("=7q")
SECTOR = 512
CREATE, TRUNCATE = 0o100, 0o1000  # of open, under Linux
VARIANTS = ("kept", "dropped", "names only", "contents only", "last name only", "some", "cut")


def compile_shim(folder: Path) -> Path:
    """The library that records; skips the test where it cannot be made."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, to record writes")
    library = folder / "disk.so"
    source = Path(__file__).with_suffix(".c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the recorder of writes does not compile here: {done.stderr.splitlines()[0]}")
    return library


@dataclass(frozen=True)
class Event:
    """Something that a process did to a file."""

    kind: str
    """O(pen), C(lose), W(rite), T(runcate), S(ync), R(ename), U(nlink), D (mkdir), M(ark)."""
    fd: int
    offset: int
    length: int
    flags: int
    name: str
    data: bytes


def read_events(path: Path) -> list[Event]:
    content, events, place = path.read_bytes(), [], 0
    while place < len(content):
        kind, fd, offset, length, flags, name_length, data_length = HEAD.unpack_from(content, place)
        place += HEAD.size
        name = content[place : place + name_length].decode()
        place += name_length
        events.append(Event(chr(kind), fd, offset, length, flags, name, content[place : place + data_length]))
        place += data_length
    return events


@dataclass
class _File:
    synced: bytes = b""
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(place, bytes) of writes, (length, None) of truncations, since."""

    def after(self, changes: list[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.synced)
        for place, data in changes:
            if data is None:
                content = content[:place].ljust(place, b"\0")
            else:
                content = content.ljust(place, b"\0")
                content[place : place + len(data)] = data
        return bytes(content)


FOLDER = _File()


class Disk:
    """What is safe of the files below a folder, and what is on its way.

    Args:
        start: a copy of the folder as it was at first, all of it safe.
        root: the folder.
    """

    def __init__(self, start: Path, root: Path) -> None:
        self.root = root
        self.names = {
            str(root / path.relative_to(start)): FOLDER if path.is_dir() else _File(path.read_bytes())
            for path in sorted(start.rglob("*"))
        }
        self.waiting: list[tuple[str, str, _File | None]] = []
        """(folder, name, file or None) of names that came or went, since their folder was synced."""
        self._open: dict[int, tuple[str, _File]] = {}

    def apply(self, event: Event) -> None:
        now = self._now()
        if event.kind == "O":
            if event.name not in now and event.flags & CREATE:
                now[event.name] = _File()
                self._name(event.name, now[event.name])
            file = now.get(event.name, FOLDER)
            self._open[event.fd] = (event.name, file)
            if event.flags & TRUNCATE:
                file.waiting.append((0, None))
        elif event.kind == "C":
            del self._open[event.fd]
        elif event.kind in "WT":
            data = (event.offset, event.data) if event.kind == "W" else (event.length, None)
            self._open[event.fd][1].waiting.append(data)
        elif event.kind == "S":
            name, file = self._open[event.fd]
            if file is FOLDER:
                done = [entry for entry in self.waiting if entry[0] == name]
                self.waiting = [entry for entry in self.waiting if entry[0] != name]
                self.names = _renamed(self.names, done)
            else:
                file.synced, file.waiting = file.after(file.waiting), []
        elif event.kind == "R":
            self._name(event.name, None)
            self._name(event.data.decode(), now[event.name])
        elif event.kind == "U":
            self._name(event.name, None)
        elif event.kind == "D":
            self._name(event.name, FOLDER)

    def after_power_loss(self, variant: str, seed: int) -> dict[str, bytes | None]:
        """What may be there: path below the root -> content, None for folders."""
        chance = np.random.default_rng(seed)
        # A journalling file system keeps the order of names; not all do.
        names = {"dropped": [], "contents only": [], "last name only": self.waiting[-1:]}.get(variant, self.waiting)
        if variant == "some":
            names = names[: chance.integers(len(names) + 1)]
        elif variant == "cut":
            names = [entry for entry in names if chance.random() < 0.5]
        left: dict[str, bytes | None] = {}
        for name, file in _renamed(self.names, names).items():
            path = str(Path(name).relative_to(self.root))
            if file is FOLDER:
                left[path] = None
                continue
            changes = {"dropped": [], "names only": []}.get(variant, file.waiting)
            if variant == "some":
                changes = [change for change in changes if chance.random() < 0.5]
            elif variant == "cut":
                changes = [_cut(change, chance) for change in changes]
            left[path] = file.after(changes)
        # A name whose folder is not there is not there.
        return {path: data for path, data in left.items() if str(Path(path).parent) in {".", *left}}

    def _now(self) -> dict[str, _File]:
        return _renamed(self.names, self.waiting)

    def _name(self, name: str, file: _File | None) -> None:
        self.waiting.append((str(Path(name).parent), name, file))


def _renamed(names: dict[str, _File], changes: list[tuple[str, str, _File | None]]) -> dict[str, _File]:
    names = dict(names)
    for _, name, file in changes:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file
    return names


def _cut(change: tuple[int, bytes | None], chance: np.random.Generator) -> tuple[int, bytes | None]:
    """A write that stopped after some sectors."""
    place, data = change
    if data is None or chance.random() < 0.5:
        return change
    return place, data[: chance.integers(len(data) // SECTOR + 1) * SECTOR]


def put(left: dict[str, bytes | None], folder: Path) -> None:
    """Write what was left into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, data in sorted(left.items()):
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def states(start: Path, root: Path, events: list[Event]) -> Iterator[tuple[int, Disk]]:
    """The disk before each event, and after the last."""
    disk = Disk(start, root)
    for i, event in enumerate(events):
        yield i, disk
        disk.apply(event)
    yield len(events), disk
