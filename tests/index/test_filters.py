"""Conditions on what is known of files: SQLite finds what Python finds, and nothing of the text is SQL."""

import json
import os
import random
import sqlite3
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.errors import UsageError
from onepeace.index.filters import compile_condition, period, register, short_forms

COLUMNS = ("path", "kind", "size", "mtime_ns", "date", "width", "height", "duration", "caption", "metadata", "tags")
FOLDER = "/photos/ann"
UNKNOWN = 1000
"""Number of a picture of which little is known."""


def random_rows(count=80):
    draw = random.Random(3)  # noqa: S311
    for number in range(count):
        folder = draw.choice(["Beach", "night", "ÄÖ"])
        name = draw.randrange(9)
        ending = draw.choice(["jpg", "ogg"])
        yield {
            "path": f"{FOLDER}/{folder}/{name}.{ending}",
            "kind": draw.choice(["image", "audio", "text", "video"]),
            "size": draw.randrange(4000) * 1000,
            "width": draw.randrange(9),
            "duration": draw.choice([0.0, 1.5, 30.0, 60.0, 90.0, 7200.0]),
            "caption": draw.choice(["a dog", "A Beach at night", "it's 100%_"]),
            "metadata": {
                "n": draw.choice([0, 5, 2.5, "5", "x"]),
                "a b": str(number % 3),
            },
        }


ROWS = list(random_rows())


def database_of(roots, *rows):
    """A table of files with these values by column; the others are NULL."""
    database = sqlite3.connect(":memory:")
    register(database, roots)
    database.execute(f"CREATE TABLE files(id, {', '.join(COLUMNS)})")
    marks = ", ".join("?" * (1 + len(COLUMNS)))
    for id_, values in rows:
        database.execute(f"INSERT INTO files VALUES({marks})", [id_, *map(values.get, COLUMNS)])
    return database


@pytest.fixture(scope="module")
def database():
    rows = []
    for number, row in enumerate(ROWS):
        stored = {
            "path": os.fsencode(row["path"]),
            "kind": row["kind"],
            "metadata": json.dumps(row["metadata"]),
        }
        rows.append((number, row | stored))
    unknown = {
        "path": b"/x.png",
        "kind": "image",
        "size": 5,
        "date": datetime(2024, 5, 3, 12).timestamp(),
    }
    return database_of([FOLDER], *rows, (UNKNOWN, unknown))


def ids_where(database, where):
    condition = compile_condition(where) if isinstance(where, str) else where
    return [id_ for (id_,) in database.execute(f"SELECT id FROM files WHERE {condition.sql}", condition.params)]  # noqa: S608


NUMBER = st.sampled_from(["0", "3", "5.5", "2*min", "1.5*MB", "-1", "min"])
SIGN = st.sampled_from(["<", "<=", "==", "!=", ">=", ">"])
FIELD = st.sampled_from(["size", "width", "duration"])
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


def ids_where_in_python(where):
    units = {
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "s": 1.0,
        "min": 60.0,
        "h": 3600.0,
    }
    for number, row in enumerate(ROWS):
        names = {
            **units,
            **row,
            "path": Text(row["path"]),
            "caption": Text(row["caption"]),
        }
        if eval(where, {"__builtins__": {}}, names):  # noqa: S307 (of this test)
            yield number


@settings(max_examples=150, deadline=None)
@given(CONDITION)
def test_sqlite_finds_what_python_finds(database, where):
    assert [id_ for id_ in ids_where(database, where) if id_ != UNKNOWN] == list(ids_where_in_python(where))


@pytest.mark.parametrize(
    "where",
    [
        "width > 3",
        "not width > 3",
        "caption != 'x'",
    ],
)
def test_unknown_value_is_none_and_satisfies_no_comparison(database, where):
    assert UNKNOWN not in ids_where(database, where)
    assert ids_where(database, "width is None") == [UNKNOWN]


def test_any_key_of_metadata_can_be_asked_for():
    key = 'a"b\\c.d'
    database = database_of([], (1, {"metadata": json.dumps({key: "x"})}), (2, {}))

    assert ids_where(database, f"metadata[{key!r}] == 'x'") == [1]


@pytest.mark.parametrize(
    ("where", "values"),
    [
        ("'5' in metadata.n", ["5"]),
        ("metadata.n == 5", [5, "5"]),
        ("2 < metadata.n", [5, 2.5, "5"]),
    ],
)
def test_text_of_digits_and_numbers(database, where, values):
    expected = []
    for number, row in enumerate(ROWS):
        n = row["metadata"]["n"]
        if any(n == value and type(n) is type(value) for value in values):
            expected.append(number)

    assert ids_where(database, where) == expected


TAGS = [
    {
        "camera": "X100V",
        "keywords": ["beach", "Zürich"],
        "rating": 4,
        "latitude": 48.137,
        "longitude": 11.575,
    },
    {
        "camera": "x100v",
        "keywords": ["night"],
        "rating": 2,
        "latitude": 48.0,
        "longitude": 11.6,
        "place": ["München"],
    },
    {
        "artist": "Ann",
        "album": "One",
        "genre": "Jazz",
        "title": "a = b",
        "latitude": -17.7,
        "longitude": 179.95,
    },
    {},
]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("camera = 'X100V'", [0, 1]),
        ("camera == 'x100' or '100' in camera", [0, 1]),
        ("camera != 'X100V'", []),
        ("keyword != 'beach'", [1]),
        ("keyword in ('beach', 'night')", [0, 1]),
        ("'z\u00fcr' in keyword", [0]),
        ("title = 'a = b' and artist='ann' and genre == 'jazz'", [2]),
        ("near(48.1, 11.6, 20*km)", [0, 1]),
        ("not near(48.1, 11.6, 20*km)", [2]),
        ("near(-17.7, -179.95, 11000*m)", [2]),
        ("camera = 'X100V' and near(48.1, 11.6, 20*km) and keyword = 'beach'", [0]),
    ],
)
def test_conditions_on_tags_find_files(where, numbers):
    database = database_of([], *((number, {"tags": json.dumps(tags)}) for number, tags in enumerate(TAGS)))

    assert ids_where(database, where) == numbers


@pytest.mark.parametrize("period", ["== '2024'", "== '2024-05'", ">= '2024-05-03'", "<= '2024-05'", "< '2024-06'"])
def test_date_is_in_a_period(database, period):
    assert ids_where(database, f"date {period}") == [UNKNOWN]


@pytest.mark.parametrize("period", ["> '2024-05'", "< '2024-05'", "!= '2024'", "== '2024-05-04'"])
def test_date_is_in_no_other_period(database, period):
    assert ids_where(database, f"date {period}") == []


def test_patterns_fit_paths_below_a_root_and_whole_ones(database):
    pictures = {number for number, row in enumerate(ROWS) if row["path"].endswith("jpg")}
    beach = {number for number, row in enumerate(ROWS) if "/Beach/" in row["path"]}

    assert ids_where(database, "path.match('*.jpg')") == sorted(pictures)
    assert ids_where(database, "path.match('Beach/*')") == sorted(beach)
    assert ids_where(database, "path.match('/photos/*/Beach/**')") == sorted(beach)
    assert ids_where(database, "not path.match('**/Beach/*') and path.match('*.jpg')") == sorted(pictures - beach)


@pytest.mark.parametrize("where", ["'/\xe9/\xe4' in path", "path.match('/\xe4.jpg')", "'a\u0308' in path"])
def test_accents_apart_are_those_of_one_character(where):
    database = database_of(["/e\u0301"], (1, {"path": "/e\u0301/a\u0308.jpg".encode()}))

    assert ids_where(database, where) == [1]


def test_short_forms_are_one_condition(database):
    where = short_forms("width is None", "2024", "2024-06", "*.png")

    assert ids_where(database, where) == [UNKNOWN]
    assert short_forms() is None


def test_short_form_that_is_no_date():
    with pytest.raises(UsageError, match="before"):
        short_forms(before="yesterday")


def test_many_values_are_not_too_deep(database):
    """SQLite takes expressions of a depth of 1000."""
    values = ", ".join(map(str, range(1500)))

    assert ids_where(database, f"width in ({values})") == ids_where(database, "width >= 0")


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("widht > 3", "did you mean width"),
        ("width = 3 and caption = 'a = b' and height = 'x'", "compare height"),
        ("camera > 'X100V'", "= or in"),
        ("3 in keyword", "contains no text"),
        ("near(48.1, 11.6, 20)", "not a radius"),
        ("path.match('!*.jpg')", "begins with !"),
        ("size > 2MB", "2*MB"),
        ("date > 2024-05", 'in quotes: "2024-05"'),
        ("width > 0300", "leading zeros"),
        ("kind == 'pictur'", "did you mean picture"),
        ("kind < 'image'", "= or in"),
        ("width in ()", "is empty"),
        ("not caption in []", "is empty"),
        ("size > 9**9", "not a value"),
        ("3 in (1, 2)", "not a field"),
        ("(" * 500 + "1" + ")" * 500, "where: "),
        ("width > 3 " * 2000, "10,000"),
        (r"metadata['a\x00b'] == 1", "NUL"),
        (r"'\ud800' in caption", "surrogate"),
    ],
)
def test_mistake_is_named(where, word):
    with pytest.raises(UsageError) as error:
        compile_condition(where)

    message = str(error.value)
    assert word in message
    assert message.startswith("where: ")  # the field; the command line adds the dashes
    assert "\n" not in message
    assert "octal" not in message


@pytest.mark.parametrize("text", ["", "24", "2024-05-01T25:00", "0000", "9999"])
def test_period_of_other_text(text):
    with pytest.raises(UsageError, match="date"):
        period(text)
