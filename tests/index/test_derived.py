"""Derived files: whole or not opened at all, whoever else writes them, and whenever the writer dies."""

import json
import logging
import os
import signal
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from onepeace.index import derived
from onepeace.index.derived import Made, Origin

ORIGIN = Origin(first=0, last=99, generation=3, calibration="c0ffee", library="library 1.2")
NAME = "near-text"
CONTENT = bytes(range(256)) * 40


def made(content=CONTENT, **facts):
    return Made(content, facts, lambda path: path.write_bytes(content))


def load(path, facts):
    return path.read_bytes()


def refuse(path, facts):
    raise AssertionError(f"{path} was opened")


def make_none():
    raise AssertionError("it was made again")


def current(folder):
    return folder / json.loads((folder / f"{NAME}.json").read_text())["file"]


def describe(folder, **changes):
    """A description with other contents and its own checksum right."""
    path = folder / f"{NAME}.json"
    about = {**json.loads(path.read_text()), **changes}
    del about["check"]
    path.write_text(json.dumps({**about, "check": zlib.crc32(json.dumps(about, sort_keys=True).encode())}))


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def folder(tmp_path):
    """One that holds a whole file, and one of a name that begins alike."""
    derived.write(tmp_path, NAME, ORIGIN, made())
    derived.write(tmp_path, "near", ORIGIN, made(b"other"))
    return tmp_path


def test_what_was_written_is_read_with_its_facts(folder):
    derived.write(folder, NAME, ORIGIN, made(b"new", effort=7))
    assert derived.read(folder, NAME, ORIGIN, lambda path, facts: (path.read_bytes(), facts)) == (b"new", {"effort": 7})
    assert derived.keep(folder, NAME, ORIGIN, load, make_none) == b"new"
    assert derived.read(folder, "near", ORIGIN, load) == b"other"
    assert len(files(folder)) == 4


def test_nothing_there_is_nothing_to_tell(tmp_path, caplog):
    assert derived.read(tmp_path, NAME, ORIGIN, refuse) is None
    assert derived.keep(tmp_path / "new", NAME, ORIGIN, refuse, made) == CONTENT
    assert not caplog.records


def cut(size):
    return lambda folder: os.truncate(current(folder), size)


def flip(place):
    def damage(folder):
        content = bytearray(CONTENT)
        content[place] ^= 4
        current(folder).write_bytes(content)

    return damage


def cut_and_lie(folder):
    cut(100)(folder)
    describe(folder, size=100)


DAMAGES = {
    "empty": (cut(0), "has 0 bytes, not 10240"),
    "first byte only": (cut(1), "has 1 bytes"),
    "half": (cut(len(CONTENT) // 2), "has 5120 bytes"),
    "all but the last byte": (cut(len(CONTENT) - 1), "has 10239 bytes"),
    "one byte more": (lambda folder: current(folder).write_bytes(CONTENT + b"\0"), "has 10241 bytes"),
    "flipped in the first byte": (flip(0), "has another checksum"),
    "flipped in the middle": (flip(len(CONTENT) // 2), "has another checksum"),
    "flipped in the last byte": (flip(-1), "has another checksum"),
    "gone": (lambda folder: current(folder).unlink(), "cannot be read (No such file"),
    "no description": (lambda folder: (folder / f"{NAME}.json").unlink(), "it is missing"),
    "empty description": (lambda folder: (folder / f"{NAME}.json").write_text(""), "it is no description"),
    "half a description": (lambda folder: os.truncate(folder / f"{NAME}.json", 60), "it is no description"),
    "a list": (lambda folder: (folder / f"{NAME}.json").write_text("[1]"), "it is no description"),
    "another number": (
        lambda folder: (folder / f"{NAME}.json").write_text(
            (folder / f"{NAME}.json").read_text().replace('"last": 99', '"last": 98')
        ),
        "it is damaged",
    ),
    "a size that is not so": (lambda folder: describe(folder, size=7), "has 10240 bytes, not 7"),
    "a size that was made so": (cut_and_lie, "has another checksum"),
    "a file elsewhere": (lambda folder: describe(folder, file=f"../{NAME}-00000000.bin"), "it has the format"),
    "a later format": (lambda folder: describe(folder, format=2), "it has the format 2, not 1"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_is_never_opened_and_made_again(folder, caplog, damage, reason):
    damage(folder)
    assert derived.keep(folder, NAME, ORIGIN, refuse, lambda: made(b"again")) == b"again"
    (line,) = caplog.messages
    assert reason in line
    assert str(folder / f"{NAME}.json") in line
    assert derived.keep(folder, NAME, ORIGIN, load, make_none) == b"again"
    assert derived.read(folder, "near", ORIGIN, load) == b"other"
    assert len(files(folder)) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"library": "library 1.3"}, "the library 'library 1.2', not 'library 1.3'"),
        ({"generation": 4}, "the generation 3, not 4"),
        ({"calibration": ""}, "the calibration 'c0ffee', not ''"),
        ({"first": 1}, "the first 0, not 1"),
        ({"last": 98}, "rows up to 99, not 98"),
        ({"last": 120}, "rows up to 99, not 120"),
    ],
)
def test_of_another_origin_is_made_again(folder, caplog, change, reason):
    wanted = replace(ORIGIN, **change)
    assert derived.keep(folder, NAME, wanted, refuse, lambda: made(b"again"), behind=20) == b"again"
    (line,) = caplog.messages
    assert reason in line
    assert derived.keep(folder, NAME, wanted, load, make_none, behind=20) == b"again"


def test_a_few_later_rows_are_no_reason(folder):
    assert derived.keep(folder, NAME, replace(ORIGIN, last=119), load, make_none, behind=20) == CONTENT
    assert derived.read(folder, NAME, replace(ORIGIN, last=10**6), load) == CONTENT


def test_a_whole_file_that_does_not_open_is_made_again(folder, caplog):
    def broken(path, facts):
        raise RuntimeError("Index type 0x00\nnot recognized")

    assert derived.keep(folder, NAME, ORIGIN, broken, lambda: made(b"again")) == b"again"
    assert "does not open (Index type 0x00 not recognized)" in caplog.text


def test_leftovers_make_room_before_anything_is_written(folder):
    left = folder / f".{NAME}-0123abcd.bin.77.tmp"
    left.write_bytes(b"what a killed process wrote")

    def save(path):
        assert not left.exists()
        path.write_bytes(b"new")

    derived.write(folder, NAME, ORIGIN, Made(None, {}, save))
    assert derived.read(folder, NAME, ORIGIN, load) == b"new"


def test_full_disk_keeps_the_old_file_and_gives_the_new_one(folder, caplog):
    def half(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = files(folder)
    later = replace(ORIGIN, generation=4)
    assert derived.keep(folder, NAME, later, refuse, lambda: Made("new", {}, half)) == "new"
    assert "cannot be kept ([Errno 28] No space left on device)" in caplog.messages[-1]
    assert files(folder) == before
    assert derived.read(folder, NAME, ORIGIN, load) == CONTENT


def test_place_that_cannot_be_written_to(tmp_path, caplog):
    (tmp_path / "derived").write_text("a file where the folder should be")
    assert derived.keep(tmp_path / "derived", NAME, ORIGIN, refuse, lambda: made(b"new")) == b"new"
    assert "cannot be kept" in caplog.messages[-1]


class Stop(BaseException):
    """The end of a process, as near as one can come to it in the process."""


def test_stopped_before_any_step_the_old_file_or_the_new_one_is_there(tmp_path, monkeypatch):
    steps = {"fsync": os.fsync, "replace": os.replace, "unlink": Path.unlink}
    left = 0

    def counted(name):
        def step(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop
            return steps[name](*args, **kwargs)

        return step

    found = []
    for stop in range(100):
        folder = tmp_path / str(stop)
        folder.mkdir()
        derived.write(folder, NAME, ORIGIN, made(b"old"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted("fsync"))
            patch.setattr(os, "replace", counted("replace"))
            patch.setattr(Path, "unlink", counted("unlink"))
            left = stop
            try:
                derived.write(folder, NAME, ORIGIN, made(b"new"))
                finished = True
            except Stop:
                finished = False
        found.append(derived.read(folder, NAME, ORIGIN, load))
        derived.keep(folder, NAME, replace(ORIGIN, generation=4), load, lambda: made(b"after"))
        assert derived.read(folder, NAME, replace(ORIGIN, generation=4), load) == b"after"
        assert len(files(folder)) == 2
        if finished:
            break
    switch = found.index(b"new")
    assert found == [b"old"] * switch + [b"new"] * (len(found) - switch)
    assert switch >= 5  # the new file's sync, its name, the folder's, the description's, before it counts


CHILD = """
import os, sys, time
from pathlib import Path
from onepeace.index import derived
from onepeace.index.derived import Made, Origin

folder, name, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def hang(*args):
    print("here", flush=True)
    sys.stdin.read()

def save(path):
    path.write_bytes(b"half of what")
    if moment == "saving":
        hang()
    path.write_bytes(b"from the child")

def make():
    print("making", os.getpid(), flush=True)
    if moment == "slow":
        time.sleep(0.3)
    return Made("made", {}, save)

if moment == "described":
    derived.write_text_atomic = hang
if moment == "removing":
    derived.crc32, crc32 = (lambda path: (setattr(derived, "remove_leftovers", hang), crc32(path))[1]), derived.crc32
load = lambda path, facts: path.read_text()
print("has", derived.keep(folder, name, Origin(0, 99, 4, "c0ffee", "library 1.2"), load, make), flush=True)
"""


def child(folder, moment):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), NAME, moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(derived.__file__).parents[2])},
    )


@pytest.mark.parametrize(
    ("moment", "left", "new"), [("saving", ".tmp", False), ("described", ".bin", False), ("removing", ".bin", True)]
)
def test_killed_while_making_leaves_what_the_next_one_removes(folder, caplog, moment, left, new):
    before, old = files(folder), current(folder)
    later = replace(ORIGIN, generation=4)
    process = child(folder, moment)
    while process.stdout.readline() != "here\n":
        assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    assert current(folder) == old or new
    (more,) = set(files(folder)) - set(before)
    assert more.endswith(left)
    assert derived.read(folder, NAME, later if new else ORIGIN, load) == (b"from the child" if new else CONTENT)
    caplog.clear()
    assert derived.keep(folder, NAME, replace(ORIGIN, generation=5), load, lambda: made(b"again")) == b"again"
    assert len(caplog.messages) == 1
    assert len(files(folder)) == 4
    assert derived.read(folder, NAME, replace(ORIGIN, generation=5), load) == b"again"


def test_of_two_processes_one_makes_it_and_both_have_it(folder):
    """Without the lock both would make it; what they leave would be one whole file all the same."""
    both = [child(folder, "slow") for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(lines[-1] for lines in said) == ["has from the child", "has made"]
    assert sum(line.startswith("making") for lines in said for line in lines) == 1
    assert derived.read(folder, NAME, replace(ORIGIN, generation=4), load) == b"from the child"
    assert len(files(folder)) == 4


def test_another_writer_that_no_lock_stopped_does_no_harm(folder, caplog):
    """As on a file system whose locks do not reach other machines."""
    later = replace(ORIGIN, generation=4)

    def save(path):
        path.write_bytes(b"slow")
        derived.write(folder, NAME, later, made(b"quick"))

    assert derived.keep(folder, NAME, later, load, lambda: Made("slow", {}, save)) == "slow"
    assert "cannot be kept" in caplog.messages[-1]
    assert derived.read(folder, NAME, later, load) == b"quick"
    assert len(files(folder)) == 4


def test_waiting_for_another_process_is_told(folder, caplog):
    caplog.set_level(logging.INFO)
    later = replace(ORIGIN, generation=4)
    with child(folder, "saving") as process, ThreadPoolExecutor(1) as pool:
        while process.stdout.readline() != "here\n":
            assert process.poll() is None
        waiting = pool.submit(derived.keep, folder, NAME, later, load, make_none)
        while "another process is making it; waiting ..." not in caplog.text:
            assert not waiting.done()
        process.communicate()  # its input ends, and it goes on
        assert waiting.result() == b"from the child"
