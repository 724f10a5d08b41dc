"""Programs in Python processes of their own."""

import subprocess
import sys


def run_python(code, *arguments, exit_code=0, cwd=None):
    """Runs a program, which must end with that exit code: a failure shows its stderr. Returns its stdout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert process.returncode == exit_code, f"exit code {process.returncode}\n{process.stderr[-4000:]}"
    return process.stdout
