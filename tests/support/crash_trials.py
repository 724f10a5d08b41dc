"""Faults, many times over, and whether an index survives them. The tests run a few trials of each kind, and

    PYTHONPATH=tests python -m support.crash_trials

as many as the table in onepeace/index/README.md says, which it prints.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support import crash, disk
from support.crash import Ended, Worker

from onepeace.errors import UserError
from onepeace.files.table import markdown_table
from onepeace.index.store import DATABASE, Store
from onepeace.index.verify import verify


@dataclass
class Outcome:
    """Of all trials of a kind."""

    trials: int = 0
    lost: int = 0
    """Files that were in the index, or should have been, and were not."""
    seconds: list[float] = field(default_factory=list)
    """From the fault to an index that is open."""

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.trials + other.trials, self.lost + other.lost, self.seconds + other.seconds)


@dataclass(frozen=True)
class Place:
    """Folders of a trial."""

    base: Path

    @property
    def files(self) -> Path:
        return self.base / "files"

    @property
    def root(self) -> Path:
        """What loses power; the index is in it."""
        return self.base / "disk"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def kept(self) -> Path:
        return self.base / "kept"

    def keep(self) -> None:
        """Remember the files and the disk as they are now."""
        shutil.rmtree(self.kept, ignore_errors=True)
        for folder in (self.files, self.root):
            shutil.copytree(folder, self.kept / folder.name)

    def put_back(self) -> None:
        for folder in (self.files, self.root):
            shutil.rmtree(folder)
            shutil.copytree(self.kept / folder.name, folder)


def built_index(base: Path, count: int = 12) -> Place:
    """An index of some texts, kept."""
    place = Place(base)
    crash.write_texts(place.files, count)
    place.root.mkdir()
    crash.run("build", place.index, place.files, batch=max(3, count // 4))
    place.keep()
    return place


def damage_vectors(place: Place) -> None:
    """Two rows in the middle."""
    (path,) = place.index.glob("vectors-*.f32")
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)


def damage_database(place: Place) -> None:
    """The head of a page with paths."""
    path = place.index / DATABASE
    content = bytearray(path.read_bytes())
    start = content.index(str(place.files).encode())
    start -= start % 4096
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)


def damage_killed(place: Place, worker: Worker) -> None:
    """What is newest is in the log of a writer that was killed; then the database is damaged, so that all of it can be
    read with that log, and nothing is known of the index without."""
    (place.files / "000.txt").write_text("short text that was edited")
    worker.run("update", place.index, place.files, dies=True)
    path = place.index / DATABASE
    content = bytearray(path.read_bytes().replace(b"preprocessing0", b"preprocessing1"))
    content[18] = 3  # the version for writing
    path.write_bytes(content)


SCENES: dict[str, tuple[str, Callable[[Place, Worker], None]]] = {
    "build": ("build", lambda place, _: shutil.rmtree(place.index)),
    "update": ("update", lambda place, _: crash.change_texts(place.files)),
    "repair": ("repair", lambda place, _: damage_vectors(place)),
    "rescue": ("repair", damage_killed),
}
"""A command, and what happened since the index was built."""


@dataclass(frozen=True)
class Stage:
    """An index and a command that has work to do with it."""

    place: Place
    command: str
    known: Mapping[str, tuple]
    """By hash what an index may say of a content."""
    marks: Sequence[Mapping[str, str]]
    """`crash.summary` of the index, at first and after each transaction of the undisturbed command."""

    def survive(self, safe: Mapping[str, str], in_flight: Mapping[str, str] | None = None) -> Outcome:
        """Open the index after a fault, and let the command go on.

        Args:
            safe: summary of the last transaction that was reported as done.
            in_flight: of the one after it, if that is known.
        """
        place, start = self.place, time.perf_counter()
        if self.command == "repair":
            crash.run("repair", place.index, place.files)
        is_there = (place.index / DATABASE).exists()
        if is_there:
            Store(place.index).close()
        seconds = time.perf_counter() - start
        now = summary(place.index, self.known) if is_there else {}
        wanted = crash.summary({path: said[0] for path, said in crash.truth(place.files).items()})
        lost = [name for name, hash_ in safe.items() if wanted.get(name) == hash_ != now.get(name)]
        assert lost or in_flight is None or now in (safe, in_flight), "an index is in a state in which it never was"
        crash.run("update" if self.command == "repair" else self.command, place.index, place.files, batch=5)
        crash.check(place.index)
        assert crash.state(place.index) == crash.truth(place.files)
        left = {path.name for path in place.index.iterdir()} - {f"{DATABASE}-wal", f"{DATABASE}-shm"}
        assert len(left) == 4, f"more than lock, database, backup and vectors: {left}"
        return Outcome(1, len(lost), [seconds])


def summary(index: Path, known: Mapping[str, tuple]) -> dict[str, str]:
    """Of an index that is sound, and says of its files only what is true."""
    crash.check(index)
    now = crash.state(index)
    assert all(said == known[said[0]] for said in now.values()), "vectors of another content"
    return crash.summary({path: said[0] for path, said in now.items()})


def stage(base: Path, scene: str, worker: Worker, log: Path | None = None) -> Stage:
    """The scene, and the undisturbed command in it, whose writes are recorded in ``log``; the place is as before it."""
    place = built_index(base / scene, 90 if scene == "rescue" else 12)
    known = {one[0]: one for one in crash.truth(place.files).values()}
    first = summary(place.index, known)
    command, happen = SCENES[scene]
    happen(place, worker)
    place.keep()
    known |= {one[0]: one for one in crash.truth(place.files).values()}
    ended = worker.run(command, place.index, place.files, **({"log": str(log)} if log else {}))
    assert ended.code == 0, ended.said
    marks = [{} if scene == "build" else first, *ended.marks]
    if command == "repair":
        marks = [summary(place.index, known)]
    place.put_back()
    return Stage(place, command, known, marks)


def kills(base: Path, scene: str, worker: Worker, trials: int, seed: int = 0) -> Outcome:
    """SIGKILL at any moment of a command, and in every second trial at any moment of the same command that goes on, in
    batches of another size."""
    chance, outcome, at = np.random.default_rng(seed), Outcome(), stage(base, scene, worker)
    start = time.perf_counter()
    worker.run(at.command, at.place.index, at.place.files)
    seconds = time.perf_counter() - start
    for trial in range(trials):
        at.place.put_back()
        safe, in_flight = at.marks[0], at.marks[0]
        for batch in (3, 5)[: 1 + trial % 2]:
            number = worker.start(at.command, at.place.index, at.place.files, batch=batch)
            time.sleep(chance.uniform(0, seconds))
            with suppress(ProcessLookupError):  # it has ended
                os.kill(number, signal.SIGKILL)
            ended = worker.wait()
            marks = ended.marks if at.command != "repair" else []
            safe = marks[-1] if marks else safe
            in_flight = at.marks[min(len(marks) + 1, len(at.marks) - 1)] if batch == 3 else None
        outcome += at.survive(safe, in_flight)
    return outcome


def power_losses(base: Path, scene: str, worker: Worker, trials: int | None = None, seed: int = 0) -> Outcome:
    """The power goes before each write, sync, rename or removal of a command, with all variants of what is left.

    Args:
        trials: only as many, taken at random.
    """
    log, outcome = base / "log", Outcome()
    at = stage(base, scene, worker, log)
    events = disk.read_events(log)
    marks = [at.marks[0], *(json.loads(event.name) for event in events if event.kind == "M")]
    moments = [(i, variant) for i in range(len(events) + 1) for variant in disk.VARIANTS]
    if trials is not None:
        moments = [moments[i] for i in np.random.default_rng(seed).choice(len(moments), trials, replace=False)]
    done = 0
    for i, state in disk.states(at.place.kept / "disk", at.place.root, events):
        done += i > 0 and events[i - 1].kind == "M"
        for variant in disk.VARIANTS:
            if (i, variant) not in moments:
                continue
            disk.put(state.after_power_loss(variant, seed + i), at.place.root)
            safe, in_flight = marks[done], marks[min(done + 1, len(marks) - 1)]
            outcome += at.survive(at.marks[0], None) if at.command == "repair" else at.survive(safe, in_flight)
    return outcome


def full_disks(base: Path, scene: str, worker: Worker, trials: int | None = None, seed: int = 0) -> Outcome:
    """Each write of a command fails: alone, with all after it, or after a part of it; and each wait for the disk.

    The command says so in one line, and the same command goes on when there is space again.
    """
    outcome, at = Outcome(), stage(base, scene, worker)
    counted = worker.run(at.command, at.place.index, at.place.files, how="once", at=-1)
    moments = [(how, i + 1) for how in ("once", "full", "short") for i in range(counted.writes)]
    moments += [("sync", i + 1) for i in range(counted.syncs)]
    if trials is not None:
        moments = [moments[i] for i in np.random.default_rng(seed).choice(len(moments), trials, replace=False)]
    for how, number in moments:
        at.place.put_back()
        ended = worker.run(at.command, at.place.index, at.place.files, how=how, at=number)
        if ended.code:
            _complains(ended, at.place.index, how, number)
        done = len(ended.marks)
        if at.command == "repair":
            outcome += at.survive(at.marks[0])
        else:
            safe = ended.marks[-1] if ended.marks else at.marks[0]
            outcome += at.survive(safe, at.marks[min(done + 1, len(at.marks) - 1)])
    return outcome


def full_file_systems(base: Path, scene: str, worker: Worker) -> Outcome:
    """A file system that is full, with a page more of room in each trial, until it is enough.

    Raises:
        PermissionError: no right to mount one.
    """
    outcome, at = Outcome(), stage(base, scene, worker)
    root = at.place.root
    _mount("size=16m", root)
    try:
        for room in range(0, 1 << 20, 4096):
            _mount("remount,size=16m", root)
            for path in root.iterdir():
                shutil.rmtree(path)
            shutil.copytree(at.place.kept / "disk", root, dirs_exist_ok=True)
            status = os.statvfs(root)
            _mount(f"remount,size={(status.f_blocks - status.f_bfree) * status.f_frsize + room}", root)
            ended = worker.run(at.command, at.place.index, at.place.files)
            if ended.code == 0:
                break
            _complains(ended, at.place.index, room)
            _mount("remount,size=16m", root)
            outcome += at.survive(ended.marks[-1] if ended.marks and at.command != "repair" else at.marks[0])
    finally:
        subprocess.run(["umount", root], check=True)
    return outcome


def _complains(ended: Ended, index: Path, *moment: object) -> None:
    """In one line, of the folder and of nothing else."""
    assert ended.code == 1, (moment, ended)
    assert str(index) in ended.said, (moment, ended)
    assert "\n" not in ended.said, (moment, ended)
    assert "run: onepeace index repair" not in ended.said, (moment, ended)


def _mount(options: str, folder: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def damages(base: Path, how: str, worker: Worker, trials: int, seed: int = 0) -> Outcome:
    """Files of an index are cut, or one bit in them is another: `verify` says so, or nothing that counts has changed;
    `repair` and `update` make the index whole. In half of the trials the last writer was killed: its log is there. In a
    third, somebody goes on with the damaged index before anybody looks at it.

    Args:
        how: "cut" or "flip".
    """
    chance, outcome, at = np.random.default_rng(seed), Outcome(), stage(base, "update", worker)
    place, wanted = at.place, crash.truth(at.place.files)
    for is_killed in (True, False):
        place.put_back()
        if is_killed:
            worker.run(at.command, place.index, place.files, dies=True)
        else:
            crash.run("update", place.index, place.files)
            crash.run("repair", place.index, place.files)  # a compaction
        place.keep()
        for trial in range(trials // 2):
            place.put_back()
            paths = [path for path in sorted(place.index.iterdir()) if path.stat().st_size]
            path = paths[trial % len(paths)]
            content = bytearray(path.read_bytes())
            at_byte = int(chance.integers(min(len(content), 100 if trial % 3 == 0 else 1 << 30)))  # the head is small
            if how == "cut":
                del content[at_byte:]
            else:
                content[at_byte] ^= 1 << int(chance.integers(8))
            path.write_bytes(content)
            complaint = f"{how} at {at_byte} of {path.name}, {is_killed=}"
            if trial % 3 == 1:
                (place.files / "007.txt").touch()
                with suppress(UserError):
                    crash.run("update", place.index, place.files)
            start = time.perf_counter()
            try:
                is_sound = verify(place.index).ok
            except UserError:
                is_sound = False
            if is_sound:
                now = crash.state(place.index)
                # What the log of a killed writer had behind the damage counts as not written.
                assert now == wanted or path.name.endswith("-wal"), complaint
                assert all(said == at.known[said[0]] for said in now.values()), complaint
            crash.run("repair", place.index, place.files)
            Store(place.index).close()
            seconds = time.perf_counter() - start
            now = summary(place.index, at.known).items()
            crash.run("update", place.index, place.files)
            crash.check(place.index)
            assert crash.state(place.index) == wanted, complaint
            lost = crash.summary({path: said[0] for path, said in wanted.items()}).items() - now
            outcome += Outcome(1, len(lost), [seconds])
    return outcome


SCENES_OF = {
    "`kill -9` at any moment": kills,
    "power loss before any write, sync or rename": power_losses,
    "full disk, or failing sync, at any write": full_disks,
}
DAMAGES = {"cut": "a file cut at any place", "flip": "one bit flipped in a file"}
DOING = {
    "build": "build", "update": "update", "repair": "repair of vectors, compaction", "rescue": "repair of the database",
}  # fmt: skip


def main(kills_: int = 60, damages_: int = 400) -> None:
    """Everything, and the table of it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with Worker(disk.compile_shim(base)) as worker:
            for fault, function in SCENES_OF.items():
                for scene, doing in DOING.items():
                    count = kills_ if function is kills else None
                    outcome = function(base / function.__name__, scene, worker, count)
                    rows.append(_row(fault, doing, outcome))
            for how, fault in DAMAGES.items():
                rows.append(_row(fault, "-", damages(base / how, how, worker, damages_)))
    print(markdown_table(["fault", "during", "trials", "files lost", "seconds to open again: median, most"], rows))


def _row(fault: str, doing: str, outcome: Outcome) -> list[str]:
    seconds = f"{statistics.median(outcome.seconds):.3f}, {max(outcome.seconds):.3f}"
    return [fault, doing, str(outcome.trials), str(outcome.lost), seconds]


if __name__ == "__main__":
    main()
