"""Hints about the texts of a query, and who gets none."""

import json

import pytest

from onepeace.cli import main
from onepeace.hub.resolve import fetch_model
from onepeace.index import Index, Query, build
from onepeace.index.hints import Hints, Suggestion, hints, whole_words
from onepeace.processors.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def vocabulary():
    return whole_words(read_tokenizer(fetch_model("tiny").folder / "tokenizer.json"))


@pytest.fixture
def hints_of(vocabulary):
    def call(text, occurring=()):
        return hints([text], vocabulary, lambda word: word in occurring)

    return call


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("retreiver", "retriever"),
        ("a guitarr on the beach", "a guitar on the beach"),
        ("chruch, moutain", "church, mountain"),
        ("a horse runing in a field", "a horse running in a field"),
    ],
)
def test_typo_gets_the_word_that_is_meant(hints_of, typed, meant):
    (line,), suggestion = hints_of(typed)
    assert line.startswith(f'did you mean "{meant}"?')
    assert suggestion == Suggestion(meant)


@pytest.mark.parametrize(
    "text",
    [
        "an elephant",
        "IMG_2034 dscn0042.jpg 12th",
        "finishers streetlamps",
        "affenpinscher",
        "a library in Zermatt",
        "a dog's bowl",
        "a hair clip",
        "",
    ],
)
def test_words_that_the_model_has_learned_and_names_beside_them_get_no_hint(hints_of, text):
    assert hints_of(text) == Hints()


@pytest.mark.parametrize("text", ["une voiture rouge", "niño en la playa", "犬", "Schnee", "Hund im Schnee"])
def test_words_that_the_model_has_not_learned_are_said_to_be_unknown(hints_of, text):
    (line,) = hints_of(text).lines
    assert "may not know" in line
    assert "English" in line


def test_articles_of_other_languages_are_no_misspelt_words(hints_of):
    (line,) = hints_of("una macchina fotografica nel parco").lines
    assert line.startswith('the model may not know "una" and ')
    assert hints_of("Una paloma").lines
    assert hints_of("una paloma", occurring=["una"]) == Hints()
    assert hints_of("la paz") == Hints()


def test_negation_beside_foreign_words(hints_of):
    lines, suggestion = hints_of("playa de arena without people")
    assert len(lines) == 2
    assert suggestion == Suggestion("playa de arena", "people")


def test_word_of_the_index_is_meant_as_it_is(hints_of):
    for text in ("guitarr", "perro", "собака"):
        assert hints_of(text).lines
        assert hints_of(text, occurring=[text]) == Hints()


def test_encoder_without_a_vocabulary_gives_hints_about_negations_alone():
    (line,) = hints(["a guitarr without people"], {}, lambda _: False).lines
    assert "negate" in line


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("a beach without people", Suggestion("a beach", "people")),
        ("a beach, but no people.", Suggestion("a beach", "people")),
        ("a street that isn't busy", Suggestion("a street", "busy")),
    ],
)
def test_negation_gets_the_option(hints_of, text, suggestion):
    (line,) = hints_of(text).lines
    assert line.endswith(f'--text "{suggestion.text}" --without "{suggestion.without}"')
    assert hints_of(text).suggestion == suggestion


@pytest.mark.parametrize("text", ["not a dog", "a boy without a shirt is running in the street"])
def test_negation_of_all_or_inside_a_sentence_proposes_no_query(hints_of, text):
    assert hints_of(text) == Hints(("the model cannot negate; name what to leave out with: --without WORDS",))
    assert hints_of("a no parking sign") == Hints()


def test_negation_of_a_misspelt_word(hints_of):
    lines, suggestion = hints_of("a guitarr without people")
    assert len(lines) == 2
    assert suggestion == Suggestion("a guitar", "people")


def test_search_has_hints_on_its_first_page_alone(random_folder, tmp_path, capsys):
    folder = tmp_path / "own.index"
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "guitarr.txt").write_text("music")
    build(folder, [texts], model=str(random_folder))
    with Index.open(folder) as index:
        with index.reading() as state:
            state.encoder._computed.get("vocabulary", lambda: {"volcano": 1})
        results = index.search(Query(text=["volcno", "guitarr"]))
        assert len(results.hints) == 1  # a file is called guitarr
        assert results.suggestion is None
        assert index.search("volcno").to_dict()["suggestion"] == {"text": "volcano", "without": ""}
        assert index.search("volcno", offset=1).hints == ()
    assert main(["search", str(folder), "--text", "perro", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in printed["hits"]] == [1]
    assert "perro" in printed["hints"][0]
    assert {"compared", "relevant", "heading", "suggestion"} <= printed.keys()
