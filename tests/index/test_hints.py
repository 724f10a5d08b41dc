"""Hints about the texts of a query, and who gets none."""

import json

import pytest

from onepeace.cli import main
from onepeace.index import Index, Query, build, hints
from onepeace.index.hints import Hints, Suggestion

for name in hints.PACKAGES:
    pytest.importorskip(name)


def hints_of(text, occurring=()):
    return hints.hints([text], lambda word: word in occurring)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("elefant", "elephant"),
        ("a guitarr on the beach", "a guitar on the beach"),
        ("bycicle, wmoan", "bicycle, woman"),
    ],
)
def test_typo_gets_the_word_that_is_meant(typed, meant):
    assert hints_of(typed) == Hints((f'did you mean "{meant}"?',), Suggestion(meant))


@pytest.mark.parametrize(
    "text",
    [
        "an elephant",
        "IMG_2034 dscn0042.jpg 12th",
        "chat",
        "rouge",
        "llama",
        "affenpinscher",
        "Marija",
        "Björn",
        "a dog's bowl",
        "",
    ],
)
def test_usual_rare_and_other_words_get_no_hint(text):
    assert hints_of(text) == Hints()


def test_word_of_the_index_is_meant_as_it_is():
    for text in ("elefant", "perro", "собака"):
        assert hints_of(text).lines
        assert hints_of(text, occurring=[text]) == Hints()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("perro", "Spanish"),
        ("Hund im Schnee", "German"),
        ("chien", "French"),
        ("собака", "script"),
    ],
)
def test_other_language_is_named(text, language):
    (line,) = hints_of(text).lines
    assert language in line
    assert "English words" in line


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("a beach without people", Suggestion("a beach", "people")),
        ("a beach, but no people.", Suggestion("a beach", "people")),
        ("a street that isn't busy", Suggestion("a street", "busy")),
        ("birds and not any gulls", Suggestion("birds", "gulls")),
    ],
)
def test_negation_gets_the_option(text, suggestion, monkeypatch):
    monkeypatch.setattr(hints, "PACKAGES", ("no_such_package",))  # which a negation does not need
    (line,) = hints_of(text).lines
    assert line.endswith(f'--text "{suggestion.text}" --without "{suggestion.without}"')
    assert hints_of(text).suggestion == suggestion
    assert hints_of("elefant") == Hints()


def test_negation_of_a_misspelt_word():
    lines, suggestion = hints_of("a guitarr without people")
    assert len(lines) == 2
    assert suggestion == Suggestion("a guitar", "people")


def test_negation_of_all_and_none():
    assert hints_of("not a dog") == Hints(('the model cannot negate; leave something out with: --without "a dog"',))
    assert hints_of("a no parking sign") == Hints()


def test_negation_inside_a_sentence_proposes_no_query():
    (line,) = hints_of("a boy without a shirt is running in the street").lines
    assert line == "the model cannot negate; name what to leave out with: --without WORDS"
    assert hints_of("a boy without a shirt is running in the street").suggestion is None


def test_search_has_hints_on_its_first_page_alone(random_folder, samples, tmp_path, capsys):
    folder = tmp_path / "elefant.index"
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "guitarr.txt").write_text("music")
    build(folder, [texts], model=str(random_folder))
    with Index.open(folder) as index:
        results = index.search(Query(text=["elefant", "guitarr"]))
        assert results.hints == ('did you mean "elephant"?',)  # a file is called guitarr
        assert results.suggestion is None
        assert index.search("elefant").to_dict()["suggestion"] == {"text": "elephant", "without": ""}
        assert index.search("elefant", offset=1).hints == ()
    assert main(["search", str(folder), "--text", "elefant"]) == 0
    assert capsys.readouterr().out.startswith('did you mean "elephant"?\n')
    assert main(["search", str(folder), "--text", "elefant", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rank"] == 1
    assert "elephant" in err
