"""`onepeace caption`: see generate.py."""

from functools import partial

from onepeace.commands import generate

add_arguments = partial(generate.add_arguments, name="caption")
run = partial(generate.run, name="caption")
