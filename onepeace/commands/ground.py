"""`onepeace ground`: see generate.py."""

from functools import partial

from onepeace.commands import generate

add_arguments = partial(generate.add_arguments, name="ground")
run = partial(generate.run, name="ground")
