"""docs/reference/commands.md: every command with its options, as the parsers have them; `make readme` writes it."""

import argparse
from collections.abc import Iterator

from support.readme import ROOT

from onepeace.cli import COMMANDS, command_parser

PAGE = ROOT / "docs" / "reference" / "commands.md"
HEAD = """\
# Commands

Every command and its options, as `onepeace COMMAND --help` prints them (`make readme` writes this page). The guides
show them at work. Each command also takes `--help`; `--debug`, which shows the traceback of an error; and
`--import FILE.py` (repeatable), which first imports a Python file or module that
[adds modalities, terms or layouts](../guide/extend.md).

Every command ends with 0 when all is done; with 1 when it failed, or some of the files did; and with 2 for wrong usage,
which is also a path or a model on the command line that does not exist.
"""
POSITIONAL = "positional arguments"
OTHERS = "options"
"""Title of argparse's own group of the options that are in no other."""
COMMON = {"--help", "--debug", "--import"}
"""Options that every command has."""


def page() -> str:
    """The text of the page."""
    sections = [HEAD]
    for command, text in COMMANDS.items():
        parser = command_parser(command)
        sections.append(f"## {command}\n\n{_sentence(text)}\n{_arguments(parser)}")
        for verb, child in verbs_of(parser).items():
            sections.append(f"### {command} {verb}\n\n{child.description}\n{_arguments(child)}")
        if parser.epilog:
            sections.append(f"```text\n{parser.epilog.rstrip()}\n```\n")
    return "\n".join(sections)


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the sub-commands of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """The arguments that a command has of its own, each with the title of its group."""
    for group in parser._action_groups:
        for action in group._group_actions:
            is_common = bool(COMMON & {*action.option_strings})
            if not is_common and not isinstance(action, argparse._SubParsersAction):
                yield group.title or "", action


def _arguments(parser: argparse.ArgumentParser) -> str:
    """The list of a command's arguments: positional ones, those of its groups, then all others."""
    lines_by_title: dict[str, list[str]] = {POSITIONAL: []}
    for title, action in arguments_of(parser):
        line = f"- {_form(action)}: {(action.help or '') % vars(action)}\n"
        lines_by_title.setdefault(title, []).append(line)
    lines_by_title[OTHERS] = lines_by_title.pop(OTHERS, [])  # last
    has_groups = len(lines_by_title) > 2
    text = ""
    for title, lines in lines_by_title.items():
        if has_groups and title != POSITIONAL:
            heading = "Other options" if title == OTHERS else _sentence(title).rstrip(".")
            text += f"\n{heading}:\n\n"
        text += "".join(lines)
    return f"\n{text}" if text else ""


def _form(action: argparse.Action) -> str:
    """An argument as one types it."""
    if action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    elif isinstance(action.metavar, tuple):
        value = " ".join(action.metavar)
    else:
        value = action.metavar
    if action.nargs in ("+", "*"):
        value = f"{value} ..."
    if not action.option_strings:
        return f"`{value}`"
    if action.nargs == 0:
        return ", ".join(f"`{name}`" for name in action.option_strings)
    return ", ".join(f"`{name} {value}`" for name in action.option_strings)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
