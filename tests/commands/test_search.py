"""Walking folders, and the commands search, embed and classify on real files with broken ones among them."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.broken_files import write_broken, write_good
from support.random_model import save_random_model

from onepeace.cli import main
from onepeace.errors import UsageError
from onepeace.files.walk import walk
from onepeace.index.where import FIELDS

SUFFIXES = {".jpg": "image", ".ogg": "audio", ".txt": "text"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, samples):
    """A folder of 40 real files under awkward names and 21 broken ones; the paths of the good, names of the broken."""
    folder = tmp_path_factory.mktemp("mixed")
    good = write_good(folder / "real", samples, 40)
    return folder, good, write_broken(folder / "broken", samples)


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


# Walking


def found(paths, folder):
    files, unreadable = walk(paths, SUFFIXES)
    return [(str(path.relative_to(folder)), kind) for path, kind in files], [
        (str(path.relative_to(folder)), reason) for path, reason in unreadable
    ]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.JPG", "a.txt", "sub/c.ogg", "sub/.hidden.ogg", ".git/d.jpg", "notes.md", "a/deep/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_walk_takes_known_endings_in_order(tree):
    files, unreadable = found([tree], tree)
    assert files == [("a.txt", "text"), ("b.JPG", "image"), ("a/deep/e.jpg", "image"), ("sub/c.ogg", "audio")]
    assert unreadable == []


def test_walk_takes_a_named_file_whatever_it_is_called(tree):
    files, _ = found([tree / "notes.md", tree / "sub" / ".hidden.ogg", tree / "b.JPG"], tree)
    assert files == [("notes.md", ""), ("sub/.hidden.ogg", "audio"), ("b.JPG", "image")]


def test_walk_gives_each_file_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    files, _ = walk(["sub", "a.txt", tree / "a.txt", ".", "sub/c.ogg"], SUFFIXES)
    assert [str(path) for path, _ in files] == ["sub/c.ogg", "a.txt", "b.JPG", "a/deep/e.jpg"]


def test_walk_survives_loops_and_links(tree):
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "sub" / "broken.jpg").symlink_to(tree / "nothing")
    (tree / "sub" / "link.jpg").symlink_to(tree / "b.JPG")
    os.mkfifo(tree / "pipe.jpg")
    files, unreadable = found([tree], tree)
    assert ("sub/link.jpg", "image") in files
    assert len(files) == 5
    assert unreadable == [("pipe.jpg", "not a regular file"), ("sub/broken.jpg", "a link to nothing")]


def test_walk_reports_a_folder_it_may_not_read(tree, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read anything
    files, unreadable = found([tree], tree)
    assert len(files) == 3
    assert unreadable == [("sub", "Permission denied")]


def test_walk_names_a_path_that_is_not_there(tree):
    with pytest.raises(UsageError, match="nothing: no such file or folder"):
        walk([tree, tree / "nothing"], SUFFIXES)


# Search


def test_search_ranks_by_cosine(command, model, mixed):
    folder, good, _ = mixed
    code, out, err = command(
        "search", folder / "real", "--text", "a dog", "--top", "40", "--duplicates", "show", "--json"
    )
    assert (code, err) == (0, "")
    hits = json_lines(out)
    assert sorted(hit["path"] for hit in hits) == sorted(map(str, good))
    expected = model.similarity(model.encode([Path(hits[0]["path"])]), model.encode_text(["a dog"]))
    assert [hit["rank"] for hit in hits] == list(range(1, 41))
    assert hits[0]["score"] == pytest.approx(expected.item(), abs=2e-5)
    assert all(a["score"] >= b["score"] for a, b in itertools.pairwise(hits))
    assert {hit["modality"] for hit in hits} == {"image", "audio", "text"}


def test_search_by_a_mix_is_the_composed_vector(command, model, samples):
    dog, bark = samples / "images" / "dog.jpg", samples / "sounds" / "dog.ogg"
    query = ["--image", dog, "--audio", bark, "--text", "at night"]
    folder = samples / "images"
    expected = model.encode(
        [{"image": dog, "audio": bark, "text": "at night"}], weights={"image": 0.2, "audio": -1, "text": 0.5}
    )
    for weights in ("0.2,-1,0.5", "text=0.5, audio=-1,image=0.2"):
        code, out, _ = command(
            "search", folder, *query, f"--weights={weights}", "--json", "--top", "3", "--duplicates", "show"
        )
        assert code == 0
        for hit in json_lines(out):
            score = model.similarity(model.encode_image([hit["path"]]), expected).item()
            assert hit["score"] == pytest.approx(score, abs=2e-5)


def test_search_leaves_the_querys_own_file_out(command, samples, tmp_path):
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "copy.jpg")
    paths = [samples / "images", tmp_path]
    _, out, _ = command(
        "search", *paths, "--image", samples / "images" / "dog.jpg", "--json", "--top", "99", "--duplicates", "show"
    )
    hits = [hit["path"] for hit in json_lines(out)]
    assert hits[0] == str(tmp_path / "copy.jpg")
    assert str(samples / "images" / "dog.jpg") not in hits


def test_search_only_one_kind(command, samples):
    code, out, _ = command(
        "search", samples, "--text", "a dog", "--only", "audio", "--json", "--top", "99", "--duplicates", "show"
    )
    assert code == 0
    assert {hit["modality"] for hit in json_lines(out)} == {"audio"}


def test_table_is_for_people(command, mixed):
    folder = mixed[0]
    code, out, _ = command("search", folder / "real", "--text", "a dog", "--top", "40", "--duplicates", "show")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["rank", "score", "kind", "at", "path"]
    assert len(lines) == 41  # a line break in a name does not break the table
    assert any("写真" in line for line in lines)
    assert any(r"line\nbreak" in line for line in lines)


def test_broken_files_are_listed_and_nothing_else_is_disturbed(command, mixed):
    folder, _, broken = mixed
    clean = command("search", folder / "real", "--text", "a dog", "--top", "99", "--duplicates", "show", "--json")[1]
    code, out, err = command("search", folder, "--text", "a dog", "--top", "99", "--duplicates", "show", "--json")
    assert code == 1
    assert [(h["path"], round(h["score"], 4)) for h in json_lines(out)] == [
        (h["path"], round(h["score"], 4)) for h in json_lines(clean)
    ]
    head, *lines = err.strip().splitlines()
    assert head == f"onepeace: {len(broken)} of {len(broken) + 40} files failed:"
    assert len(lines) == len(broken)
    for name, reason in broken.items():
        shown = str(folder / "broken" / name).replace("\n", "\\n")
        (line,) = [line for line in lines if f"  {shown}: " in line]
        assert reason in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "PATH"], "nothing to search for"),
        (["search", "PATH/nothing", "--text", "a"], "no such file or folder"),
        (["search", "PATH", "--image", "nothing.jpg"], "nothing.jpg: no such file"),
        (["search", "PATH", "--text", "a", "--top", "0"], "--top: '0' is not a whole number from 1 up"),
        (["search", "PATH", "--text", "a", "--batch-size", "0"], "--batch-size: '0' is not a whole"),
        (["search", "PATH", "--text", "a", "--only", "smell"], "invalid choice: 'smell'"),
        (["search", "PATH", "--text", "a", "--weights", "1,2"], "the query has the parts text"),
        (["search", "PATH", "--text", "a", "--weights", "image=1"], "the query has the parts text"),
        (["search", "PATH", "--text", "a", "--weights", "much"], "weights are numbers"),
        (["search", "PATH", "--text", "a", "--weights", "0"], "not all 0"),
        (["search", "PATH", "--text", "a", "--weights", "text=nan"], "finite"),
        (["search", "PATH", "--without", "a", "--weights", "0.5"], "the weight of without must not be above 0"),
        (["search", "PATH", "--image", "PATH"], "is a folder; name a file"),
        (["search", "PATH", "--text", "a", "--offset", "-1"], "--offset: '-1' is not a whole number from 0 up"),
        (["search", "PATH", "--text", "a", "--min-match", "nan"], "--min-match: 'nan' is not a number from 0 to 1"),
        (["search", "PATH", "--text", "a", "--rank", "best"], "--rank best: it can be znorm, raw, centred"),
        (["search", "PATH", "--text", "a", "--nearest", "best"], "no search structure is called 'best'"),
        (["search", "PATH", "--text", "a", "--where", "x"], "--where, position 1: no field 'x'"),
        (["search", "PATH", "--text", "a", "--after", "May"], "--after: 'May' is not a date"),
        (["search", "PATH", "--text", "a", "--before", "May"], "--before: 'May' is not a date"),
        (["search", "PATH", "--text", "a", "--path-glob", "[z-a]"], "--path-glob: '[z-a]' is not a pattern"),
        (["search", "PATH", "--text", "a", "--html", "PATH/no/page.html"], "no folder"),
        (["search", "PATH", "--text", "a", "--html", "PATH"], "is a folder"),
        (["search", "EMPTY", "--text", "a"], "no image, audio or text files"),
        (["search", "PATH", "--text", "a", "--only", "text"], "no text files"),
        (["classify", "PATH"], "required"),
        (["classify", "PATH", "--labels", " , "], "no labels"),
        (["classify", "PATH", "--labels", "a,b,a"], "'a' is given twice"),
        (["classify", "PATH", "--labels", "a", "--template", "a photo"], "no {} for the label"),
        (["classify", "PATH", "--labels-file", "nothing.txt"], "nothing.txt: cannot be read"),
        (["classify", "PATH", "--labels", "a", "--labels-file", "x"], "not allowed with"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(command, samples, tmp_path, arguments, message):
    places = {"PATH": str(samples), "EMPTY": str(tmp_path)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_broken_query_is_an_error(command, samples, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    code, out, err = command("search", samples, "--image", tmp_path / "broken.jpg")
    assert (code, out) == (1, "")
    assert "broken.jpg: not a picture" in err


def test_options_that_say_nothing_about_an_index_are_refused(command, samples, tmp_path):
    (tmp_path / "names.txt").write_text("a")
    assert command("index", "build", tmp_path / "names.txt", "--index", tmp_path / "i")[0] == 0
    for options, message in (
        (["--compare", tmp_path / "i"], "is the index that is searched; name another one"),
        (["--vectors", tmp_path / "v.npz"], "is for an index of imported vectors"),
    ):
        code, out, err = command("search", tmp_path / "i", "--text", "a", *options)
        assert (code, out) == (2, "")
        assert message in err


def test_nothing_found_does_not_speak_of_filters_alone(command, samples):
    picture = samples / "images" / "dog.jpg"
    _, out, _ = command("search", picture, "--image", picture)
    assert out == "nothing found: there is no file but the query's own and those that the filters leave out\n"


def test_help_names_every_field_of_where(capsys):
    assert main(["search", "--help"]) == 0
    text = capsys.readouterr().out.partition("--where: ")[2].partition(" with ")[0]
    assert {*re.split(r", | and ", text.removesuffix(","))} == {*FIELDS, "metadata.NAME"}


def test_named_file_is_known_by_its_content(command, samples, tmp_path):
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "dog.backup")
    (tmp_path / "notes.md").write_text("# notes")
    code, out, err = command("search", tmp_path / "dog.backup", tmp_path / "notes.md", "--text", "a", "--json")
    assert code == 1
    assert [hit["modality"] for hit in json_lines(out)] == ["image"]
    assert "notes.md: not a picture, sound or text (unknown ending '.md')" in err


def test_files_the_model_has_no_modality_for_are_left_out(tmp_path, samples, capsys):
    folder = save_random_model(tmp_path / "model", ("text", "image"))
    code = main(
        ["search", str(samples), "--text", "a", "--model", str(folder), "--json", "--top", "99", "--duplicates", "show"]
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert {hit["modality"] for hit in json_lines(out)} == {"image"}
    assert err == "onepeace: 20 audio files are left out: this model has no audio\n"


# Embed


def read_npz(path):
    with np.load(path) as data:
        return data["vectors"], data["paths"].tolist(), data["modalities"].tolist()


def read_safetensors(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
        return file.get_tensor("vectors"), json.loads(metadata["paths"]), json.loads(metadata["modalities"])


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path).to_pydict()
    return np.array(table["vector"], np.float32), table["path"], table["modality"]


@pytest.mark.parametrize("read", [read_npz, read_safetensors, read_parquet])
def test_embed_writes_vectors_with_their_paths(command, model, mixed, tmp_path, read):
    folder, good, broken = mixed
    target = tmp_path / f"out.{read.__name__.removeprefix('read_')}"
    code, out, err = command("embed", folder, "-o", target)
    assert (code, out) == (1, "")
    assert f"{len(broken)} of {len(broken) + 40} files failed" in err
    vectors, paths, modalities = read(target)
    assert sorted(paths) == sorted(map(str, good))
    assert vectors.dtype == np.float32
    expected = model.encode([{m: Path(p)} for p, m in zip(paths, modalities, strict=True)])
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert os.listdir(tmp_path) == [target.name]  # nothing temporary is left


def test_embed_of_sound_files_only_ends_with_0(command, samples, tmp_path):
    code, _, err = command("embed", samples / "sounds", "-o", tmp_path / "v.npz")
    assert code == 0
    assert err == f"onepeace: 20 vectors of 16 numbers in {tmp_path / 'v.npz'}\n"


def test_embed_writes_no_file_without_vectors(command, tmp_path):
    (tmp_path / "fake.jpg").write_bytes(b"no picture")
    (tmp_path / "v.npz").write_bytes(b"of before")
    code, _, err = command("embed", tmp_path / "fake.jpg", "-o", tmp_path / "v.npz")
    assert code == 1
    assert "1 of 1 files failed" in err
    assert "v.npz: not written" in err
    assert (tmp_path / "v.npz").read_bytes() == b"of before"


def test_embed_refuses_before_the_work(command, samples, tmp_path):
    for target, message in [("v.txt", "unknown ending '.txt'; known: .npz"), ("no/v.npz", "no folder")]:
        code, _, err = command("embed", samples, "-o", tmp_path / target)
        assert code == 2
        assert message in err


# Classify


def test_classify_shows_the_best_labels(command, model, samples):
    code, out, _ = command("classify", samples, "--labels", "dog, cat,sea", "--top", "2", "--json")
    assert code == 0
    answers = json_lines(out)
    assert len(answers) == 37
    for answer, template in [(answers[0], "a photo of a {}"), (answers[-1], "the sound of a {}")]:
        (expected,) = model.classify([answer["path"]], ["dog", "cat", "sea"], template=template)
        assert answer["labels"][0]["label"] == ["dog", "cat", "sea"][int(expected.argmax())]
        assert answer["labels"][0]["probability"] == pytest.approx(expected.max().item(), abs=2e-5)
        assert len(answer["labels"]) == 2


def test_classify_reads_labels_from_a_file_and_lists_what_failed(command, mixed, tmp_path):
    folder, _, broken = mixed
    (tmp_path / "labels.txt").write_text("dog\n\ncat\n")
    labels = ["--labels-file", tmp_path / "labels.txt", "--template", "this is {a}"]
    code, out, err = command("classify", folder, *labels)
    assert code == 1
    assert out.splitlines()[0].split() == ["label", "kind", "path"]
    assert len(out.splitlines()) == 41
    assert f"{len(broken)} of {len(broken) + 40} files failed" in err


def test_files_of_names_may_begin_with_a_byte_order_mark(command, samples, tmp_path):
    names, picture = tmp_path / "names.txt", samples / "images" / "dog.jpg"
    names.write_text("dog\ncat\n", encoding="utf-8-sig")
    _, out, _ = command("classify", picture, "--labels-file", names, "--top", "2", "--json")
    assert {each["label"] for each in json_lines(out)[0]["labels"]} == {"dog", "cat"}
    _, out, _ = command("search", picture, "--queries", names, "--json")
    assert [hit["query"] for hit in json_lines(out)] == ["dog", "cat"]


# As another process sees it


def start(model, *arguments, **options):
    words = [sys.executable, "-m", "onepeace", *map(str, arguments), "--model", str(model), "--device", "cpu"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def damaged_mp3():
    """An MP3 with a hole, about which libmpg123 prints notes of its own."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 32000), 16000, format="MP3")
    sound = buffer.getvalue()
    return sound[:2000] + bytes(1500) + sound[3500:]


def test_nothing_but_our_own_lines_reaches_stderr(random_folder, tmp_path):
    """Sounds are decoded in threads, some damaged, and some silent, about which there is a warning."""
    for index in range(12):
        (tmp_path / f"{index:02}.mp3").write_bytes(damaged_mp3())
        soundfile.write(tmp_path / f"{index:02}.wav", np.zeros(16000), 16000)
    process = start(random_folder, "embed", tmp_path, "-o", tmp_path / "v.npz")
    lines = process.communicate()[1].splitlines()
    for index in range(12):
        assert f"onepeace: {tmp_path}/{index:02}.wav: digital silence; its vector says nothing about a sound" in lines
        assert f"  {tmp_path}/{index:02}.mp3: the sound cannot be decoded (Unspecified internal error)" in lines
    assert "onepeace: 12 of 24 files failed:" in lines
    assert len(lines) == 26  # and how many vectors are written
    noisy = start(random_folder, "embed", tmp_path, "-o", tmp_path / "v.npz", "--debug").communicate()[1]
    assert "libmpg123" in noisy  # else there is nothing to be kept out, and this may go


def test_interrupt_ends_quietly(random_folder, tmp_path, samples):
    """Ctrl-C while files are being computed: no traceback, no half output, no temporary file."""
    for index in range(3000):
        (tmp_path / f"{index}.jpg").symlink_to(samples / "images" / "dog.jpg")
    target = tmp_path / "vectors.npz"
    # Python starts handling signals when it is up; the model's first warning says that it is.
    # A test run in the background of a shell hands its children an ignored SIGINT.
    options = {
        "env": {**os.environ, "PYTHONUNBUFFERED": "1"},
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    process = start(random_folder, "embed", tmp_path, "-o", target, **options)
    deadline = time.monotonic() + 120
    while not _has_torch(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".jpg")]


def _has_torch(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return "libtorch_python" in maps.read()


def test_search_in_a_plain_terminal_loads_no_training_package(random_folder, samples, tmp_path):
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "写真.jpg")
    shutil.copyfile(samples / "images" / "cat.jpg", os.fsencode(tmp_path) + b"/\xff.jpg")  # no UTF-8
    code = (
        "import sys; from onepeace.cli import main; code = main(sys.argv[1:]); "
        "heavy = ('transformers', 'timm', 'open_clip', 'webdataset', 'torchvision'); "
        "print(code, [module for module in heavy if module in sys.modules])"
    )
    queries = tmp_path / "queries"
    queries.write_text("犬\n", encoding="utf-8")
    paths = [str(tmp_path / name) for name in os.listdir(tmp_path) if name.endswith(".jpg")]
    arguments = ["search", *paths, "--queries", str(queries), "--model", str(random_folder), "--device", "cpu"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert done.stderr == ""
    assert r"\u72ac:" in done.stdout
    assert r"\u5199\u771f.jpg" in done.stdout
    assert r"\udcff.jpg" in done.stdout
