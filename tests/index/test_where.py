"""Conditions on stored fields: SQLite finds the files that Python finds, and nothing of the text is SQL."""

import json
import operator
import os
import random
import re
import sqlite3
import time
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.errors import UsageError
from onepeace.index.where import FIELDS, MAX_DEPTH, MAX_LENGTH, after, before, parse

COLUMNS = "path, modality, size, mtime_ns, date, width, height, duration, caption, metadata"
# All that may be in the SQL: our own columns, words, signs and question marks.
WORDS = "AND|OR|NOT|IS|NULL|LIKE|GLOB|ESCAPE|CASE|WHEN|THEN|END|CAST|AS|TEXT|REAL|json_extract"
NAMES = "size|mtime_ns|date|width|height|duration|modality|path|caption|metadata"
SQL = re.compile(rf"(?:[ ()?,]|<=|>=|!=|[<>=]|\b(?:{WORDS})\b|\bfiles\.(?:{NAMES})\b|'!')+")
LETTERS = "aAbBzäÄé%_!*?[]^-\\'\" "
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@pytest.fixture(autouse=True, scope="module")
def _time_zone():
    """India's, which is away from UTC and has no summer time."""
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone of this system cannot be set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        time.tzset()
        yield
    time.tzset()


def random_rows(count=150):
    source = random.Random(3)  # noqa: S311

    def maybe(value):
        return None if source.random() < 0.2 else value

    def text(most=6):
        return "".join(source.choices(LETTERS, k=source.randint(0, most)))

    def moment():
        return source.randint(0, 3 * 366 * 86400) + datetime(2022, 12, 1).timestamp()

    for number in range(count):
        value = source.choice([None, 0, 5, 2.5, -7, "5", "2.5", "-1e1", "x", "", "5 x", text()])
        metadata = {"n": value, "a b": text(), "deep": {"x-y": source.randint(0, 6)}, "é": maybe(text())}
        yield {
            "path": os.fsencode(f"/{text()}/{number}"),
            "modality": source.choice(["image", "audio", "text", "video"]),
            "size": source.randint(0, 4000),
            "mtime": round(moment()),
            "date": maybe(moment()),
            "width": maybe(source.randint(0, 9)),
            "height": maybe(source.randint(0, 9)),
            "duration": maybe(source.choice([0.0, 1.5, 30.0, 60.0, 90.0, 7200.0])),
            "caption": maybe(text()),
            "metadata": maybe(metadata),
        }


ROWS = list(random_rows())


@pytest.fixture(scope="module")
def database():
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE files(id INTEGER PRIMARY KEY, {COLUMNS})")
    for number, row in enumerate(ROWS):
        metadata = None if row["metadata"] is None else json.dumps(row["metadata"], ensure_ascii=False)
        values = {**row, "metadata": metadata, "mtime_ns": row["mtime"] * 10**9}
        values = [number, *(values[name] for name in COLUMNS.split(", "))]
        database.execute(f"INSERT INTO files VALUES({', '.join('?' * len(values))})", values)
    return database


def found(database, condition):
    assert SQL.fullmatch(condition.sql), condition.sql
    assert condition.sql.count("?") == len(condition.params)
    rows = database.execute(f"SELECT id FROM files WHERE {condition.sql}", condition.params)  # noqa: S608
    return [number for (number,) in rows]


# --- conditions, and what Python makes of them: True, False, or None for unknown ---


def quoted(text):
    return st.sampled_from(["'", '"']).map(lambda quote: quote + text.replace(quote, 2 * quote) + quote)


def comparisons(name, literal, value_of):
    """Comparisons of a field with (text, value) pairs that `literal` gives; `value_of` is the row's value or None."""

    def one(sign, pair):
        def test(row):
            value = value_of(row, pair[1])
            return None if value is None else OPERATORS[sign](value, pair[1])

        return f"{name} {sign} {pair[0]}", test

    def several(pairs, opposite):
        def test(row):
            results = [one("=", pair)[1](row) for pair in pairs]
            result = True if True in results else None if None in results else False
            return result if not opposite or result is None else not result

        texts = ",".join(text for text, _ in pairs)
        return f"{name} {'not in' if opposite else 'IN'} ({texts})", test

    return st.one_of(
        st.builds(one, st.sampled_from(sorted(OPERATORS)), literal),
        st.builds(several, st.lists(literal, min_size=1, max_size=3), st.booleans()),
    )


def is_null(name, value_of):
    return st.booleans().map(
        lambda opposite: (
            f"{name} is {'NOT ' * opposite}null",
            lambda row: (value_of(row, None) is None) != opposite,
        )
    )


def contains(name, text_of):
    def one(pair):
        text = pair[0]

        def test(row):
            value = text_of(row)
            return None if value is None else text.casefold() in value.casefold()

        return f"{name} ~ {pair[1]}", test

    return texts.flatmap(lambda text: quoted(text).map(lambda literal: (text, literal))).map(one)


texts = st.text(LETTERS, max_size=3)
text_literals = texts.flatmap(lambda text: quoted(text).map(lambda literal: (literal, text)))
numbers = st.sampled_from([("5", 5), ("0", 0), ("2.5", 2.5), ("-7", -7), ("+4e0", 4), ("9" * 400, float("inf"))])
sizes = st.sampled_from([("1kB", 1000), ("1.1 KB", 1100), ("3500 b", 3500), ("0.002MB", 2000), ("7", 7)])
durations = st.sampled_from([("1.5", 1.5), ("1.5s", 1.5), ("1 min", 60), ("2 h", 7200), ("0.5 MIN", 30)])
moments = st.datetimes(datetime(2022, 11, 1), datetime(2026, 2, 1))
dates = st.tuples(moments, st.sampled_from(["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]))
date_literals = dates.map(lambda pair: (pair[0].strftime(pair[1]),) * 2)


def date_of(name):
    """As much of a row's date as the text it is compared with has: texts in ISO's form are ordered as their times."""
    full = "%Y-%m-%dT%H:%M:%S"

    def value_of(row, text):
        if row[name] is None or text is None:
            return row[name]
        return datetime.fromtimestamp(row[name]).strftime(full)[: len(text)]

    return value_of


def column(name):
    return lambda row, _: row[name]


def metadata(*keys):
    """A value of the metadata, as a number beside a number and as a text beside a text."""

    def value_of(row, other):
        value = row["metadata"]
        for key in keys:
            value = None if value is None else value.get(key)
        if value is None or other is None:
            return value
        if isinstance(other, str):
            return str(value)
        try:
            return float(value)
        except ValueError:
            return None

    return value_of


simple = st.one_of(
    comparisons("width", numbers, column("width")),
    comparisons("HEIGHT", numbers, column("height")),
    comparisons("size", sizes, column("size")),
    comparisons("duration", durations, column("duration")),
    comparisons("date", date_literals, date_of("date")),
    comparisons("mtime", date_literals, date_of("mtime")),
    comparisons("caption", text_literals, column("caption")),
    comparisons("modality", st.sampled_from([("'image'", "image"), ('"text"', "text")]), column("modality")),
    comparisons("path", text_literals, lambda row, _: os.fsdecode(row["path"])),
    comparisons("metadata.n", numbers | text_literals, metadata("n")),
    comparisons('metadata."a b"', text_literals, metadata("a b")),
    comparisons("Metadata.deep.x-y", numbers, metadata("deep", "x-y")),
    comparisons("metadata.é", text_literals, metadata("é")),
    is_null("caption", column("caption")),
    is_null("date", column("date")),
    is_null("metadata.n", metadata("n")),
    contains("caption", lambda row: row["caption"]),
    contains("path", lambda row: os.fsdecode(row["path"])),
    contains("metadata.n", lambda row: metadata("n")(row, "")),
)


def either(left, right):
    def test(row):
        results = {left[1](row), right[1](row)}
        return True if True in results else None if None in results else False

    return f"{left[0]} OR {right[0]}", test


def both(left, right):
    def test(row):
        results = {left[1](row), right[1](row)}
        return False if False in results else None if None in results else True

    return f"({left[0]}) and\n({right[0]})", test


def opposite(inner):
    def test(row):
        result = inner[1](row)
        return None if result is None else not result

    return f"not ({inner[0]})", test


conditions = st.recursive(
    simple, lambda inner: st.builds(either, inner, inner) | st.builds(both, inner, inner) | inner.map(opposite)
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(conditions)
def test_sqlite_finds_what_python_finds(database, pair):
    text, test = pair
    assert found(database, parse(text)) == [number for number, row in enumerate(ROWS) if test(row)]


def test_every_field_is_met_with_and_without_a_value():
    for name in FIELDS:
        assert len({row[name] for row in ROWS}) > 3
    assert any(row["metadata"] is None for row in ROWS)


def test_and_binds_closer_than_or_and_not_closest(database):
    sizes = enumerate(row["size"] for row in ROWS)
    rows = [number for number, size in sizes if size > 3000 or (1000 < size < 2000)]
    assert found(database, parse("size > 3000 or not size >= 2000 and size > 1000")) == rows
    assert len(rows) > 9


# --- texts that are no conditions ---

SOUP = [
    *("size", "path", "caption", "metadata.a", 'metadata."a b"', "and", "or", "not", "in", "is", "null", "(", ")", ","),
    *("<", "<=", "=", "!=", "~", "5", "-1.5e3", "9" * 400, "2024", "2024-05", "2024-99", "kB", "min", "'a'", '"ä*["'),
    *("'", '"', "\0", "\ud800", ";", "--", "/*", "?", "?1", ":a", "@a", "$", "\\", "%", "||", "files.path"),
    *("\n", "é", "日本", "1e", ".", "..", "+", "x" * 50, "metadata.", "metadata..a", "0001", "9999", "9999-12-31"),
]  # fmt: skip
soup = st.tuples(st.lists(st.sampled_from(SOUP) | st.text(max_size=4), max_size=12), st.sampled_from(["", " "]))


@settings(deadline=None, derandomize=True, max_examples=800)
@given(st.text(st.characters(codec=None)) | soup.map(lambda pair: pair[1].join(pair[0])))
def test_any_text_is_a_condition_or_an_error_of_one_line(database, text):
    condition = problem = None
    try:
        condition = parse(text)
    except UsageError as error:
        problem = str(error)
    if condition is None:
        assert re.fullmatch(r"where(, position \d+)?: .+", problem)
    else:
        found(database, condition)


@pytest.mark.parametrize(
    "text",
    [
        "caption = ''' OR 1=1 --'",
        'caption ~ "\'; DROP TABLE files; --"',
        'metadata."\') OR 1=1 --" = 1',
        "metadata.'a' = 1",
        "path in ('a', 'b'') OR (1=1')",
        "modality = 'image' ; DELETE FROM files",
        "1=1",
        "width = width",
        "size < 5 UNION SELECT 1",
        "files.size < 5",
        "rowid < 5",
        "width = (select 1)",
        "caption = caption || 'x'",
        "caption ~ 'a' escape 'b'",
        "width = 5 /* */",
        'caption = "\\" OR 1=1 --"',
    ],
)
def test_sql_in_a_condition_does_nothing(database, text):
    try:
        condition = parse(text)
    except UsageError:
        return
    assert found(database, condition) == []
    assert database.execute("SELECT count(*) FROM files").fetchone() == (len(ROWS),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "position 1: expected a field, found the end"),
        ('metadata."a\\" = 1', "position 1: no field 'metadata'; did you mean metadata.NAME\\?"),
        ("widht < 3", "position 1: no field 'widht'; did you mean width\\?"),
        ("width < 3 and captoin ~ 'x'", "position 15: no field 'captoin'; did you mean caption\\?"),
        ("camera = 'x'", "position 1: no field 'camera'; there are size, mtime, .*, metadata.NAME"),
        ("metadata = 3", "position 1: no field 'metadata'; did you mean metadata.NAME\\?"),
        ("null = 3", "position 1: expected a field, found 'null'"),
        ("width ~ '3'", "position 7: expected < <= = != >= > in, not in or is, found '~'"),
        ("width <", "position 8: expected a number, found the end"),
        ("width < 'a'", "position 9: expected a number, found \"'a'\""),
        ("width < 3 px", "position 11: expected a number without unit for width, found 'px'"),
        ("size < 3 MiB", "position 10: expected size in B, kB, MB, GB, found 'MiB'"),
        ("duration < 3days", "position 13: expected duration in s, min, h, found 'days'"),
        ("caption ~ dog", "position 11: expected a text in quotes, found 'dog'"),
        ("caption ~ 'dog", 'position 11: expected a text in quotes, found "\'" without another one'),
        ("modality = 'picture'", "position 12: expected 'image' or 'audio' or 'text' or 'video', found \"'picture'\""),
        ("metadata.a < 2024-05-01", "position 14: expected a number or a text in quotes, found '2024-05-01'"),
        ("date > 2024-13", "position 8: '2024-13' is not a date \\(month must be .*\\)"),
        ("date > 2024-5-1", "position 8: '2024-5-1' is not a date; write 2024, 2024-05, .*"),
        ("date > 2024-02-30", "position 8: '2024-02-30' is not a date \\(day .*\\)"),
        ("date > 0000", "position 8: '0000' is not a date \\(.*\\)"),
        ("date > 9999", "position 8: '9999' is not a date \\(.*\\)"),
        ("date > yesterday", "position 8: expected a date: 2024, .*, found 'yesterday'"),
        ("caption is 5", "position 12: expected null or not null, found '5'"),
        ("caption is not 5", "position 16: expected null, found '5'"),
        ("caption not 'a'", "position 13: expected in, found \"'a'\""),
        ("width in 5", "position 10: expected \\(, found '5'"),
        ("width in (5", "position 12: expected , or \\), found the end"),
        ("(width < 5", "position 11: expected and, or or \\), found the end"),
        ("width < 5)", "position 10: expected and, or or the end, found '\\)'"),
        ("width < 5; x", "position 10: expected and, or or the end, found ';'"),
        ("caption = 'a\0'", r"position 13: '\\x00' is part of no text"),
        ("caption = '\udcff'", r"position 12: '\\udcff' is part of no text"),
    ],
)
def test_error_names_the_position_and_what_was_expected(text, message):
    with pytest.raises(UsageError, match=f"^where, {message}$"):
        parse(text)


@pytest.mark.parametrize("text", ["(" * 10_000, "not " * 10_000, "x" * 10_000, "width < 1 or " * 10_000])
def test_length_is_bounded(text):
    with pytest.raises(UsageError, match=r"^where: the condition has \d+,000 characters; at most 4,000 are read$"):
        parse(text)


def test_depth_is_bounded(database):
    inner = "not (" * (MAX_DEPTH // 2) + "width < 5" + ")" * (MAX_DEPTH // 2)
    found(database, parse(inner))
    for deeper in (f"({inner})", f"not {inner}"):
        with pytest.raises(UsageError, match="expected at most 50 parentheses and nots inside each other"):
            parse(deeper)


@pytest.mark.parametrize(
    "text",
    [
        "width=1" + " or width=1" * 362,
        "size=1" + " and not size=1" * 266,
        f"metadata.a in (1{',1' * 1990})",
        f"date in (2024{',2024' * 796})",
        f"caption ~ '{'ᾳ' * 3985}'",
        f"caption ~ '{'%' * 3985}'",
        "(" * MAX_DEPTH + "width=1" + (" or width=1" * 7 + ")") * MAX_DEPTH,
    ],
    ids=lambda text: text[:20],
)
def test_sqlite_reads_the_longest_conditions(database, text):
    assert MAX_LENGTH - 50 <= len(text) <= MAX_LENGTH
    found(database, parse(text))


# --- the letters of a text that is contained ---


@pytest.mark.parametrize(
    ("text", "stored", "is_found"),
    [
        ("STRASSE", "große straße", False),
        ("STRAẞE", "große straße", True),
        ("ÉCOLE", "l'école", True),
        ("ΣΟΦΟΣ", "σοφοσ", True),
        ("σοφος", "σοφοσ", True),
        ("日本", "in 日本", True),
        ("100%", "100 per", False),
        ("a_b", "axb", False),
        ("*ä", "xä", False),
        ("[ä]", "ä", False),
        ("^ä", "xä", False),
        ("", "", True),
    ],
)
def test_contained_text_is_taken_letter_by_letter(text, stored, is_found):
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE files(id INTEGER PRIMARY KEY, caption TEXT)")
    database.execute("INSERT INTO files VALUES(1, ?)", (stored,))
    assert found(database, parse(f"caption ~ '{text}'")) == [1] * is_found


# --- after and before ---


def test_after_and_before_part_the_files_at_the_start_of_a_date():
    start = datetime(2024, 5, 1).timestamp()
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE files(id INTEGER PRIMARY KEY, date REAL)")
    database.executemany("INSERT INTO files VALUES(?, ?)", enumerate([start - 1, start, start + 1, None]))
    for date in ("2024-05", "2024-05-01", "2024-05-01T00:00", "2024-04-30 18:30Z"):
        assert found(database, before(date)) == [0]
        assert found(database, after(date)) == [1, 2]


def test_units_are_exact():
    assert parse("size = 1.1 kB").params == (1100,)


@pytest.mark.parametrize(("ask", "option"), [(after, "after"), (before, "before")])
def test_wrong_date_names_the_option(ask, option):
    with pytest.raises(UsageError, match=f"^{option}: '01.05.2024' is not a date; write 2024, "):
        ask("01.05.2024")
