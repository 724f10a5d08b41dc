"""Tasks as data: the built-in table, a model folder's, a user's; and what is wrong in one."""

from dataclasses import replace

import pytest

from onepeace.config import write_config
from onepeace.errors import UserError
from onepeace.generative.tasks import Task, read_tasks
from onepeace.hub.folder import TASKS

WORDS = {"text": "A red-hot  Bus", "premise": "Buses, twice"}
SOURCES = {
    "caption": " what does the image describe?",
    "answer": " a red hot bus?",
    "ground": ' which region does the text " a red hot bus " describe?',
    "entail": ' does the image describe " a red hot bus "?',
    "entail_premise": ' can image and text1 " buses, twice " imply text2 " a red hot bus "?',
    "match": ' does the image describe " a red hot bus "?',
    "classify": " what does the image describe?",
    "detect": " what are the objects in the image?",
    "infill": ' what is the complete text of " A red-hot  Bus "?',
    "summarise": ' what is the summary of article " A red-hot  Bus "?',
}


def test_built_in_prompts_are_the_released_ones():
    tasks = read_tasks()
    assert {name: task.source(WORDS) for name, task in tasks.items() if name != "describe"} == SOURCES
    source = tasks["describe"].source({"box": "<bin_1><bin_2><bin_3><bin_4>"})
    assert source == "  what does the region describe? region: <bin_1><bin_2><bin_3><bin_4>"


def test_settings_of_a_row_are_changed_one_by_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "answer: {decoder_prompt: source, search: {beam: 3}}\n"
        "entail: {choices: {so: 'yes'}}\n"
        "match: null\n"
        "colour: {prompt: 'what colour is the {thing}?', choices: [red, blue], answer: choice}\n",
        encoding="utf-8",
    )
    before, tasks = read_tasks(), read_tasks(file)
    search = replace(before["answer"].search, beam=3)
    assert tasks["answer"] == replace(before["answer"], decoder_prompt="source", search=search)
    assert tasks["entail"].labels == {"so": "yes"}
    assert "match" in before
    assert "match" not in tasks
    assert tasks["colour"].source({"thing": "{bus}"}) == " what colour is the {bus}?"
    assert tasks["colour"].labels == {"red": "red", "blue": "blue"}


def test_written_tasks_are_read_again(tmp_path):
    tasks = {"mine": Task("a {b}", answer="choice", image=None, choices=["x", "y"]), **read_tasks()}
    write_config(tasks, tmp_path / TASKS)
    assert read_tasks(tmp_path / "tasks.yaml") == tasks


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{promt: x}", "caption.promt is not a field; did you mean caption.prompt"),
        ("{search: {beam: 0}}", "search.beam is 0"),
        ("{prompt: 'a {b'}", "expected '}'"),
        ("{prompt: '{image}'}", "{image} is not the name of a field"),
        ("{image: {sizes: 12}}", "image.sizes is not a setting; did you mean size"),
        ("{image: {mean: 0.5}}", "image {'mean': 0.5}: "),
    ],
)
def test_mistake_in_a_file_is_named(tmp_path, row, message):
    file = tmp_path / "tasks.yaml"
    file.write_text(f"caption: {row}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_tasks(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_item_without_the_field_is_refused():
    with pytest.raises(UserError, match=r"needs a text for \{text\}, and the item has nothing"):
        read_tasks()["ground"].source({})
    with pytest.raises(UserError, match=r"a text for \{text\}, and the item has int"):
        read_tasks()["ground"].source({"text": 3})
