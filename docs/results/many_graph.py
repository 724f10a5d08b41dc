"""The graph of many_files.md, many_files.svg, from the rows of its first table: python docs/results/many_graph.py."""

import math
from pathlib import Path

PAGE = Path(__file__).with_name("many_files.md")
WIDTH, HEIGHT, EDGE = 640, 400, 72
FILES, SECONDS = (1_000, 10_000, 100_000), (1, 10, 100, 1_000, 10_000, 100_000)
LINES = {
    "`onepeace index build`": "#d62728",
    "its first pictures": "#9467bd",
    "update, 1 % of the files changed": "#ff7f0e",
    "update, nothing changed": "#1f77b4",
    "a search, the whole command": "#2ca02c",
}
"""The rows that a line goes through, and its colour."""


def graph(page: str) -> str:
    """SVG of seconds by files; dashed: on by a straight line."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 24, "Seconds by files; dashed: on by a straight line"),
    ]
    for files in FILES:
        parts.append(text(place(files, 1)[0], HEIGHT - 30, f"{files:,}"))
    for seconds in SECONDS:
        height = place(FILES[0], seconds)[1]
        parts.append(line([(EDGE, height), (WIDTH - EDGE, height)], "#dddddd"))
        parts.append(text(EDGE / 2, height + 4, f"{seconds:,} s"))
    for name, colour in LINES.items():
        points = points_of(page, name)
        corners = [place(files, seconds) for files, seconds in points]
        files, seconds = points[-1]
        end = place(FILES[-1], seconds * FILES[-1] / files)
        parts.append(line(corners, colour))
        parts.append(line([corners[-1], end], colour, dashed=True))
        parts.append(text(end[0], end[1] - 8, name.strip("`"), colour, anchor="end"))
    return "\n".join([*parts, "</svg>\n"])


def points_of(page: str, name: str) -> list[tuple[int, float]]:
    """Files and seconds of the rows with a name."""
    points = []
    for row in page.split("## Beside open_clip")[0].splitlines():
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) > 4 and cells[1] == name:
            points.append((int(cells[2].replace(",", "")), float(cells[3])))
    return sorted(points)


def place(files: float, seconds: float) -> tuple[float, float]:
    """Position of a point in the graph, whose axes are logarithmic."""
    across = math.log(files / FILES[0]) / math.log(FILES[-1] / FILES[0])
    up = math.log(max(seconds, SECONDS[0]) / SECONDS[0]) / math.log(SECONDS[-1] / SECONDS[0])
    return EDGE + across * (WIDTH - 2 * EDGE), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)


def line(corners: list[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def text(x: float, y: float, content: str, colour: str = "black", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" text-anchor="{anchor}" fill="{colour}">{content}</text>'


if __name__ == "__main__":
    PAGE.with_suffix(".svg").write_text(graph(PAGE.read_text()))
