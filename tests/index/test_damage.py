"""A damaged index gives the right answer or one line that says what to type, never a traceback or a bus error."""

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.crash import answers, prepare, run, state, without_model, write_texts
from support.indexes import add, fabricate

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.index import check, maintain
from onepeace.index.database import DATABASE, PAGE, SIDE_FILES, Damaged, Store, failing
from onepeace.index.items import Item
from onepeace.index.vectors import derived


@pytest.fixture
def index(tmp_path):
    """An index of texts."""
    folder, files = prepare(tmp_path, "update")
    run("update", folder, files)
    return folder


@pytest.fixture
def expected(index):
    """The answers of the index."""
    return answers(index)


def flip(path, draw):
    """Turn one bit of a byte that is not 0: most that are lie in no row."""
    data = bytearray(path.read_bytes())
    position = draw.choice([position for position, byte in enumerate(data) if byte])
    data[position] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def check_answers_or_one_line(index, expected_paths):
    """The index is searched, whose vectors may differ by the bit that was flipped, or refused."""
    message = ""
    found = []
    try:
        found = answers(index)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(found) <= len(expected_paths)


@pytest.mark.parametrize("part", [DATABASE, "derived"])
def test_flipped_bit_is_answered_or_one_line(index, expected, tmp_path, part):
    draw = random.Random(0)  # noqa: S311
    for trial in range(20):
        copy = shutil.copytree(index, tmp_path / f"copy{trial}")
        path = copy / DATABASE if part == DATABASE else derived(copy)[0]
        flip(path, draw)
        if part == DATABASE:
            check_answers_or_one_line(copy, expected)
            check(copy)
        else:
            assert answers(copy) == expected  # the file is not used
            assert not check(copy).ok


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_database_that_is_cut_short(index, share, capsys):
    path = index / DATABASE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    assert main(["index", "check", str(index)]) == 1
    assert f"onepeace index build {index} PATHS --force" in "".join(capsys.readouterr())
    assert main(["search", str(index), "words"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_database_that_is_cut_at_the_end_of_a_page(index, expected):
    path = index / DATABASE
    path.write_bytes(path.read_bytes()[: 5 * PAGE])

    check_answers_or_one_line(index, expected)
    assert not check(index).ok


@pytest.mark.parametrize("word", [b"format_version", b"embed_dim"])
def test_metadata_that_are_damaged(index, word):
    path = index / DATABASE
    content = bytearray(path.read_bytes())
    content[content.index(word)] ^= 1
    path.write_bytes(content)

    assert check(index).damaged == ["its meta is not what was written"]
    with pytest.raises(UserError, match="--force"):
        answers(index)


def test_vectors_without_their_file(index):
    with closing(Store(index, write=True)) as store:
        store.connection.executescript("PRAGMA foreign_keys = OFF; DELETE FROM files WHERE problem IS NULL")

    assert not check(index).ok
    with pytest.raises(UserError, match="is missing"):
        answers(index)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vectors SET vector = zeroblob(length(vector)) WHERE file = 3",
        'UPDATE vectors SET "end" = 99 WHERE file = 3',
        "UPDATE words SET text = 'other' WHERE file = 3",
        "UPDATE files SET date = 0 WHERE id = 3",
    ],
)
def test_what_is_not_as_it_was_written_is_taken_nowhere(tmp_path, change):
    files = write_texts(tmp_path / "files", 8)
    index = tmp_path / "index"
    run("build", index, files)
    with closing(sqlite3.connect(index / DATABASE)) as connection, connection:
        assert connection.execute(change).rowcount > 0
    (damage,) = [line for line in check(index).damaged if "002.txt" in line]

    with without_model():
        report = maintain.build(tmp_path / "other", [files], reuse=[index], progress=False)
    run("build", tmp_path / "new", files)
    assert (report.copied, report.added) == (6, 1)
    assert state(tmp_path / "other") == state(tmp_path / "new")

    shutil.copy(files / "002.txt", files / "copy.txt")
    with pytest.raises(Damaged, match=damage):
        run("update", index, files)


@pytest.mark.parametrize("wrong", [("--model", "typo"), ("--device", "typo"), ()], ids=["model", "device", "path"])
def test_force_deletes_no_index_for_a_build_that_cannot_begin(index, tmp_path, samples, wrong, capsys):
    before = answers(index)
    path = samples / "images" if wrong else tmp_path / "typo"

    assert main(["index", "build", str(index), str(path), "--force", *wrong]) != 0
    assert "typo" in capsys.readouterr().err
    assert answers(index) == before


def test_damaged_index_is_built_again_by_force(index, tmp_path, samples, random_folder, capsys):
    (index / DATABASE).write_bytes(b"damaged")
    pictures = samples / "images"

    assert main(["index", "build", str(index), str(pictures)]) == 1
    assert main(["index", "build", str(index), str(pictures), "--force", "--model", str(random_folder)]) == 0
    assert main(["index", "check", str(index)]) == 0
    assert check(index).files == len(list(pictures.iterdir()))
    assert main(["index", "build", str(tmp_path / "files"), str(pictures), "--force"]) == 1  # holds other files
    assert (tmp_path / "files").is_dir()
    capsys.readouterr()


def test_log_of_a_killed_writer_is_no_damage(tmp_path):
    small = fabricate(tmp_path / "small", [(Item("/0.jpg", "image"), [1, 0])])
    killed = tmp_path / "killed"
    with closing(Store(small, write=True)) as store:
        for name in ("/1.jpg", "/2.jpg"):
            with store.transaction():
                add(store, [(Item(name, "image"), [0, 1])])
        shutil.copytree(small, killed)
    (killed / f"{DATABASE}-shm").unlink()

    assert check(killed).ok
    with closing(Store(killed)) as store:
        assert store.count() == 3


READ_ON_A_FULL_DISK = """
import resource, signal, sys
from onepeace.index import check
from support.crash import answers
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for _ in range(2):
    assert check(Path(sys.argv[1])).ok
    assert answers(Path(sys.argv[1]))
"""


def test_index_is_read_on_a_full_disk(index):
    """SQLite then leaves the beginning of the memory that it shares with a writer, which is no log."""
    for ending in SIDE_FILES:
        (index / f"{DATABASE}{ending}").unlink(missing_ok=True)

    command = [sys.executable, "-c", READ_ON_A_FULL_DISK, index]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)


def test_half_a_page_that_the_log_has_too_is_no_damage(tmp_path):
    (tmp_path / DATABASE).write_bytes(bytes(PAGE + 100))
    for log, is_damaged in ((b"", True), (b"log", False)):
        (tmp_path / f"{DATABASE}-wal").write_bytes(log)
        with pytest.raises(UserError) as error, failing(tmp_path, "written"):
            raise sqlite3.OperationalError("disk I/O error")
        assert isinstance(error.value, Damaged) == is_damaged
