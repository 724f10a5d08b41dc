"""Search a disk by words: index folders once, then answer questions from them.

    python examples/search_disk.py my.index ~/Pictures ~/Music

Enter words, or the path of a picture or a sound; an empty line ends. `--ask WORDS` searches once and prints JSON.
"""

import argparse
import json
from pathlib import Path

from onepeace.index import Index, Query, build, is_index, update
from onepeace.processors import guess


def query_of(question: str) -> Query:
    """Create a query by the file at that path if there is one, else by words."""
    if not Path(question).is_file():
        return Query(text=question)
    return Query(**{guess(Path(question), ("image", "audio")): question})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("index", help="folder of the index; made if it is not there")
    parser.add_argument("folders", nargs="*", help="what to index, where the index is not there yet")
    parser.add_argument("--ask", help="one question; its hits are printed as JSON")
    args = parser.parse_args()

    report = update(args.index) if is_index(args.index) else build(args.index, args.folders)
    for problem in report.problems:  # unreadable files are skipped
        print(f"left out: {problem.path}: {problem.reason}")

    with Index.open(args.index) as index:
        if args.ask:
            print(json.dumps(index.search(query_of(args.ask), top=3).to_dict(), indent=1))
            return
        while question := input(f"what do you look for among {len(index)} files? ").strip():
            hits = index.search(query_of(question), top=5)
            print(hits.heading or "")
            for hit in hits:
                at = "" if hit.start is None else f" at {hit.start:.0f} s"
                print(f"{hit.likelihood:9} {hit.item.path}{at}")


if __name__ == "__main__":
    main()
