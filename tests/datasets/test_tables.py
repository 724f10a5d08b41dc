"""Tables are read as they were written, whatever is in their cells."""

import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onepeace.datasets.tables import read_table

CELLS = st.text("ab ,;\"'é\\", max_size=6).map(str.strip)
ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=5)
DIALECTS = {
    ".csv": {},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None},
}


@pytest.mark.parametrize("suffix", DIALECTS)
@given(rows=ROWS)
def test_cells_are_those_that_were_written(suffix, rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"table{suffix}")
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, **DIALECTS[suffix]).writerows([["text", "b, c", "d"], *rows])

        cells = [[*row.cells.values()] for row in read_table(path)]

    assert cells == rows
