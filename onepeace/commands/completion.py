"""`onepeace completion`: the shell completion script, from argcomplete."""

import argparse

from onepeace.errors import need

EXAMPLES = """\
  eval "$(onepeace completion bash)"                                 # in ~/.bashrc; zsh likewise in ~/.zshrc
  onepeace completion fish > ~/.config/fish/completions/onepeace.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    print(need("argcomplete", "completion").shellcode(["onepeace"], True, args.shell))
    return 0
