"""Hits of a query as a terminal shows them."""

import os

from onepeace.commands.hits import near, print_both, print_table
from onepeace.index.search import Hit, Results
from onepeace.index.store import Item


def test_paths_below_the_working_folder_lose_it_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert near(os.path.join(os.getcwd(), "a", "b.jpg")) == os.path.join("a", "b.jpg")
    for path in ("https://example.org/a//b.jpg", "/elsewhere/b.jpg", f"{os.getcwd()}2/b.jpg"):
        assert near(path) == path


def test_a_cosine_is_never_in_the_column_of_matches(capsys):
    hits = tuple(Hit(i, Item(f"/{i}", "audio"), "audio", 0.25, 0.5, match) for i, match in ((1, None), (2, 0.75)))
    some, none = Results(hits, 2), Results(hits[:1], 1)
    print_table(some)
    print_both({"a": some, "b": none})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["rank", "match", "kind", "path"], ["1", "-", "audio", "/1"], ["2", "0.750", "audio", "/2"]]
    assert lines[4:6] == [["rank", "match", "a", "score", "b"], ["1", "-", "/1", "(1)", "0.250", "/1", "(1)"]]
