"""Modules that commands import: the table of start.md, from `python -X importtime` in fresh processes.

``python docs/results/imports.py FOLDER`` searches and serves the files of FOLDER (serving needs the extra web).
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter

LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")


def imported(*arguments: str, until: str | None = None) -> tuple[int, Counter[str]]:
    """Number of modules, and microseconds by package, of a command that is stopped once it has printed `until`."""
    command = [sys.executable, "-X", "importtime", "-m", "onepeace", *arguments, "--debug"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)  # noqa: S603
        if until is not None:
            next(line for line in process.stdout if until in line)  # type: ignore[union-attr]
            process.terminate()
        process.communicate()
        errors.seek(0)
        lines = LINE.findall(errors.read())
    spent: Counter[str] = Counter()
    for microseconds, module in lines:
        package = module.partition(".")[0]
        known = package.lstrip("_") in sys.stdlib_module_names or package.startswith("_")
        spent["python" if known else package] += int(microseconds)
    return len(lines), spent


def main(folder: str) -> None:
    print("| command | modules | packages, by share of the time |\n| --- | ---: | --- |")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        rows = {
            "`onepeace --help`": (["--help"], None),
            "`onepeace search FOLDER --text dog`, a new folder": (["search", folder, "--text", "dog"], None),
            "the same again": (["search", folder, "--text", "dog"], None),
            "`onepeace serve FOLDER`": (["serve", folder, "--port", "0"], "http"),
        }
        for name, (arguments, until) in rows.items():
            modules, spent = imported(*arguments, until=until)
            shares = [(package, 100 * time / sum(spent.values())) for package, time in spent.most_common()]
            shown = ", ".join(f"{package} {share:.0f} %" for package, share in shares if share >= 0.5)
            print(f"| {name} | {modules:,} | {shown} |")


if __name__ == "__main__":
    main(sys.argv[1])
