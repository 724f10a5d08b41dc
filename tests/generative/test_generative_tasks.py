"""Tasks as data: the built-in table, a model folder's, a user's; and what is wrong in one."""

from dataclasses import replace

import pytest

from onepeace.errors import UserError
from onepeace.generative.tasks import read_tasks
from onepeace.hub.folder import TASKS

ITEM = {"text": "A red-hot  Bus", "premise": "Buses, twice", "box": "<bin_1><bin_2><bin_3><bin_4>"}
SOURCES = {
    "caption": " what does the image describe?",
    "answer": " a red hot bus?",
    "ground": ' which region does the text " a red hot bus " describe?',
    "describe": "  what does the region describe? region: <bin_1><bin_2><bin_3><bin_4>",
    "entail": ' does the image describe " a red hot bus "?',
    "entail_premise": ' can image and text1 " buses, twice " imply text2 " a red hot bus "?',
    "match": ' does the image describe " a red hot bus "?',
    "classify": " what does the image describe?",
    "detect": " what are the objects in the image?",
    "infill": ' what is the complete text of " A red-hot  Bus "?',
    "summarise": ' what is the summary of article " A red-hot  Bus "?',
}


def test_built_in_prompts_are_the_released_ones():
    assert {name: task.source(ITEM) for name, task in read_tasks().items()} == SOURCES


@pytest.fixture
def tasks_file(tmp_path):
    return tmp_path / TASKS


def test_settings_of_a_built_in_task_are_changed_one_by_one(tasks_file):
    tasks_file.write_text("answer: {decoder_prompt: source, search: {beam: 3}}\n", encoding="utf-8")
    built_in = read_tasks()["answer"]
    search = replace(built_in.search, beam=3)
    assert read_tasks(tasks_file)["answer"] == replace(built_in, decoder_prompt="source", search=search)


def test_choices_of_a_built_in_task_are_replaced(tasks_file):
    tasks_file.write_text("entail: {choices: {so: 'yes'}}\n", encoding="utf-8")
    assert read_tasks(tasks_file)["entail"].labels == {"so": "yes"}


def test_null_removes_a_task(tasks_file):
    tasks_file.write_text("match: null\n", encoding="utf-8")
    assert set(read_tasks()) - set(read_tasks(tasks_file)) == {"match"}


def test_task_of_a_file(tasks_file):
    row = "colour: {prompt: 'what colour is the {thing}?', choices: [red, blue], answer: choice}\n"
    tasks_file.write_text(row, encoding="utf-8")
    task = read_tasks(tasks_file)["colour"]
    assert task.source({"thing": "{bus}"}) == " what colour is the {bus}?"
    assert task.labels == {"red": "red", "blue": "blue"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{promt: x}", "caption.promt is not a field; did you mean caption.prompt"),
        ("{search: {beam: 0}}", "search.beam is 0"),
        ("{prompt: 'a {b'}", "expected '}'"),
        ("{prompt: '{image}'}", "{image}"),
        ("{image: {sizes: 12}}", "image.sizes is not a setting; did you mean size"),
    ],
)
def test_mistake_in_a_file_is_named(tasks_file, row, words):
    tasks_file.write_text(f"caption: {row}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_tasks(tasks_file)
    message = str(caught.value)
    assert message.startswith(f"{tasks_file}: ")
    assert words in message
    assert "\n" not in message
