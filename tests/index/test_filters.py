"""Conditions on what is known of files: SQLite finds what Python finds, and nothing of the text is SQL."""

import json
import os
import random
import sqlite3
import time
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.errors import UsageError
from onepeace.index.fields import kind_of, period
from onepeace.index.filters import compile_condition, short_forms
from onepeace.index.functions import register

COLUMNS = ("path", "modality", "size", "mtime_ns", "date", "width", "height", "duration", "caption", "metadata", "tags")


def random_rows(count=80):
    draw = random.Random(3)  # noqa: S311
    for number in range(count):
        yield {
            "path": "/photos/ann/{}/{}.{}".format(
                draw.choice(["Beach", "night", "ÄÖ"]), draw.randrange(9), draw.choice(["jpg", "ogg"])
            ),
            "kind": draw.choice(["image", "audio", "text", "video"]),
            "size": draw.randrange(4000) * 1000,
            "width": draw.randrange(9),
            "height": draw.randrange(9),
            "duration": draw.choice([0.0, 1.5, 30.0, 60.0, 90.0, 7200.0]),
            "caption": draw.choice(["a dog", "A Beach at night", "it's 100%_"]),
            "metadata": {"n": draw.choice([0, 5, 2.5, "5", "x"]), "a b": str(number % 3)},
            "tags": {},
        }


ROWS = list(random_rows())


@pytest.fixture(scope="module")
def database():
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE files(id INTEGER PRIMARY KEY, {', '.join(COLUMNS)})")
    register(database, ["/photos/ann"])
    for number, row in enumerate(ROWS):
        values = {
            **row,
            "modality": row["kind"],
            "metadata": json.dumps(row["metadata"]),
            "tags": "{}",
            "mtime_ns": 0,
            "date": None,
        }
        values["path"] = os.fsencode(row["path"])
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        database.execute(f"INSERT INTO files VALUES({marks})", [number, *(values[name] for name in COLUMNS)])
    database.execute(
        "INSERT INTO files VALUES(1000, ?, 'image', 5, 0, ?, NULL, NULL, NULL, NULL, NULL, '{}')",
        [b"/x.png", datetime(2024, 5, 3, 12).timestamp()],
    )
    return database


def found(database, where):
    condition = compile_condition(where)
    return [id_ for (id_,) in database.execute(f"SELECT id FROM files WHERE {condition.sql}", condition.params)]  # noqa: S608


NUMBER = st.sampled_from(["0", "3", "5.5", "2*min", "1.5*MB", "-1", "3*kB", "min"])
SIGN = st.sampled_from(["<", "<=", "==", "!=", ">=", ">"])
FIELD = st.sampled_from(["size", "width", "height", "duration"])
TEXT = st.sampled_from(["'a dog'", '"beach"', "'%'", '"it\'s"', "'ÄÖ'", "'.jpg'", "''"])
SIMPLE = st.one_of(
    st.builds("{} {} {}".format, FIELD, SIGN, NUMBER),
    st.builds("{} {} {}".format, NUMBER, SIGN, FIELD),
    st.builds("{} <= {} < {}".format, NUMBER, FIELD, NUMBER),
    st.builds("{} in {}".format, TEXT, st.sampled_from(["path", "caption", "metadata['a b']"])),
    st.builds("caption == {}".format, TEXT),
    st.builds("kind in ('image', 'video')".format),
    st.builds("kind != 'audio'".format),
    st.builds("width not in ({}, 2)".format, NUMBER),
    st.builds("metadata['a b'] == '1'".format),
)
CONDITION = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)


class Text(str):
    """A text that contains another in capital or small letters."""

    def __contains__(self, part):
        return part.casefold() in self.casefold()


def python_finds(where):
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1.0, "min": 60.0, "h": 3600.0}
    for number, row in enumerate(ROWS):
        names = {**row, **{name: Text(row[name]) for name in ("path", "caption")}}
        if eval(where, {"__builtins__": {}}, {**units, **names}):  # noqa: S307 (of this test)
            yield number


@settings(max_examples=150, deadline=None)
@given(CONDITION)
def test_sqlite_finds_what_python_finds(database, where):
    assert [id_ for id_ in found(database, where) if id_ < 1000] == list(python_finds(where))


def test_what_is_not_known_is_found_by_no_comparison(database):
    for where in ("width > 3", "width <= 3", "not width > 3", "'a' in caption", "caption != 'x'", "duration == 0"):
        assert 1000 not in found(database, where)
    assert found(database, "width is None") == [1000]
    assert 1000 not in found(database, "caption is not None")


def test_a_number_contains_no_text(database):
    wanted = [number for number, row in enumerate(ROWS) if row["metadata"]["n"] == "5"]
    assert found(database, "'5' in metadata.n") == wanted


def test_a_text_of_digits_is_compared_with_a_number_as_one(database):
    n = {number: row["metadata"]["n"] for number, row in enumerate(ROWS)}
    assert found(database, "metadata.n == 5") == [number for number, value in n.items() if value in (5, "5")]
    assert found(database, "metadata.n != 5") == [number for number, value in n.items() if value in (0, 2.5)]
    assert found(database, "2 < metadata.n") == [number for number, value in n.items() if value in (5, 2.5, "5")]


TAGS = [
    {"camera": "X100V", "keywords": ["beach", "Zürich"], "rating": 4, "latitude": 48.137, "longitude": 11.575},
    {"camera": "x100v", "keywords": ["night"], "rating": 2, "latitude": 48.0, "longitude": 11.6, "place": ["München"]},
    {"artist": "Ann", "album": "One", "genre": "Jazz", "title": "a = b", "latitude": -17.7, "longitude": 179.95},
    {},
]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("camera = 'X100V'", [0, 1]),
        ("camera == 'x100' or '100' in camera", [0, 1]),
        ("camera != 'X100V'", []),
        ("camera is None", [2, 3]),
        ("keyword = 'BEACH'", [0]),
        ("keyword != 'beach'", [1]),
        ("keyword in ('beach', 'night')", [0, 1]),
        ("'z\u00fcr' in keyword", [0]),
        ("place = 'm\u00fcnchen'", [1]),
        ("rating >= 3", [0]),
        ("title = 'a = b' and artist='ann' and genre == 'jazz'", [2]),
        ("near(48.1, 11.6, 5*km)", [0]),
        ("near(48.1, 11.6, 20*km)", [0, 1]),
        ("not near(48.1, 11.6, 20*km)", [2]),
        ("near(-17.7, -179.95, 11000*m)", [2]),
        ("camera = 'X100V' and near(48.1, 11.6, 20*km) and keyword = 'beach'", [0]),
    ],
)
def test_tags(where, numbers):
    database = sqlite3.connect(":memory:")
    register(database)
    database.execute("CREATE TABLE files(id, tags)")
    database.executemany("INSERT INTO files VALUES(?, ?)", [(i, json.dumps(tags)) for i, tags in enumerate(TAGS)])
    assert found(database, where) == numbers


def test_dates_are_periods(database):
    for where in ("== '2024'", "== '2024-05'", ">= '2024-05-03'", "<= '2024-05'", "< '2024-06'"):
        assert found(database, f"date {where}") == [1000], where
    for where in ("> '2024-05'", "< '2024-05'", "!= '2024'", "== '2024-05-04'"):
        assert found(database, f"date {where}") == [], where


def test_patterns_fit_paths_below_a_root_and_whole_ones(database):
    jpg = [i for i, row in enumerate(ROWS) if row["path"].endswith("jpg")]
    beach = [i for i, row in enumerate(ROWS) if "/Beach/" in row["path"]]
    assert found(database, "path.match('*.jpg')") == jpg
    assert found(database, "path.match('Beach/*')") == beach
    assert found(database, "path.match('/photos/*/Beach/**')") == beach
    assert found(database, "not path.match('**/Beach/*') and path.match('*.jpg')") == sorted({*jpg} - {*beach})


def test_accents_apart_are_those_of_one_character():
    database = sqlite3.connect(":memory:")
    register(database, ["/e\u0301"])
    database.execute("CREATE TABLE files(id, path)")
    database.execute("INSERT INTO files VALUES(1, ?)", ["/e\u0301/a\u0308.jpg".encode()])
    for where in ("'/\xe9/\xe4' in path", "path.match('/\xe4.jpg')", "'a\u0308' in path"):
        assert found(database, where) == [1], where


def test_short_forms_are_one_condition(database):
    where = short_forms("width is None", "2024", "2024-06", "*.png")
    assert found(database, where) == [1000]
    assert short_forms() is None
    with pytest.raises(UsageError, match=r"^after: "):
        short_forms(after="yesterday")


def test_many_values_are_not_too_deep(database):
    """SQLite takes expressions of a depth of 1000."""
    values = ", ".join(map(str, range(1500)))
    assert found(database, f"width in ({values})") == found(database, "width >= 0")


def test_bytes_of_a_name_can_be_asked_for(database):
    assert found(database, r"path == 'a\udc80'") == []
    assert len(found(database, r"path != 'a\udc80'")) == len(ROWS) + 1


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("widht > 3", "did you mean width"),
        ("width = 'x'", "column 9"),
        ("width = 3 and caption = 'a = b' and height = 'x'", "column 46"),
        ("width = 3 and = 4", "column 15"),
        ("camera > 'X100V'", "'camera' at column 1 is compared with = or in"),
        ("keyword = 3", "is no text"),
        ("3 in keyword", "contains no text"),
        ("rating = 'x'", "is no number"),
        ("kamera = 'x'", "did you mean camera"),
        ("near(48.1, 11.6)", "near(48.1, 11.6, 20*km)"),
        ("near(48.1, 11.6, 20)", "is no radius"),
        ("near(48.1, 11.6, -2*km)", "is not a value"),
        ("near(48.1, 11.6, 2*min)", "is not a value"),
        ("near(98.1, 11.6, 2*km)", "is no latitude"),
        ("near(48.1, 'x', 2*km)", "is no longitude"),
        ("near(48.1, 11.6, radius=2*km)", "at column 18 is not a value"),
        ("duration < 2*km", "is not a value"),
        ("path.match('!*.jpg')", "no pattern"),
        ("path.match('')", "no pattern"),
        ("size > 2MB", "2*MB"),
        ("kind == 'dogs'", "it can be image"),
        ("width > 'x'", "column 9"),
        ("width", "not a condition"),
        ("caption > 3", "no text"),
        ("date > 'May'", "no date"),
        ("kind == 'pictur'", "did you mean picture"),
        ("__import__('os').system('x')", "not a condition"),
        ("open('x') == 3", "not a field"),
        ("size > 9**9", "not a value"),
        ("size > 1 + 2", "not a value"),
        ("size > 1e400", "not a value"),
        (f"size > 1{'0' * 400}*MB", "not a value"),
        ("path.match(3)", "not a condition"),
        ("3 in (1, 2)", "not a field"),
        ("(" * 500 + "1" + ")" * 500, "where: "),
        ("width > 3 " * 2000, "10,000"),
        ("size; DROP TABLE files", "where: "),
        ("\0", "where: "),
        (r"metadata['a\x00b'] == 1", "NUL"),
        (r"metadata['\ud800'] == 1", "surrogate"),
        (r"caption == '\udc80'", "surrogate"),
        (r"'\ud800' in caption", "surrogate"),
        (r"path == '\ud800'", "no path"),
        ("path.match('[z-a]')", "bad character range"),
    ],
)
def test_a_mistake_is_named_with_its_place(where, named):
    with pytest.raises(UsageError) as error:
        compile_condition(where)
    assert named in str(error.value)
    assert str(error.value).startswith("where: ")  # the field; the command line adds the dashes
    assert "\n" not in str(error.value)


def test_kinds_have_the_words_of_the_page():
    assert [kind_of(name) for name in ("pictures", "Sounds", "image", "audio", "videos")] == [
        "image", "audio", "image", "audio", "video"
    ]  # fmt: skip


@pytest.fixture
def _summer_time(monkeypatch):
    """Central Europe's time, with summer time from the last Sunday of March to that of October."""
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone of this system cannot be set")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_summer_time")
@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2024", (2023, 12, 31, 23), (2024, 12, 31, 23)),
        ("2024-12", (2024, 11, 30, 23), (2024, 12, 31, 23)),
        ("2024-02", (2024, 1, 31, 23), (2024, 2, 29, 23)),
        ("2024-03-31", (2024, 3, 30, 23), (2024, 3, 31, 22)),
        ("2024-10-27", (2024, 10, 26, 22), (2024, 10, 27, 23)),
        ("2024-05-01T12:30", (2024, 5, 1, 10, 30), (2024, 5, 1, 10, 31)),
    ],
)
def test_a_period_starts_and_ends_in_local_time(text, start, end):
    assert period(text) == tuple(datetime(*parts, tzinfo=timezone.utc).timestamp() for parts in (start, end))


@pytest.mark.parametrize("text", ["", "24", "2024-", "2024-05-01T", "2024-05-01T25:00", "20240501", "0000", "9999"])
def test_other_text_is_no_date(text):
    with pytest.raises(UsageError, match="is not a date"):
        period(text)
