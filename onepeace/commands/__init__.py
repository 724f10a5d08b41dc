"""The sub-commands: each module has `add_arguments(parser)` and `run(args) -> int` (the exit code).

`onepeace.cli` imports a module only when its sub-command is chosen; the modules import costly packages inside `run`.
"""
