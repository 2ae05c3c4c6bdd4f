"""Tables as Markdown."""

from collections.abc import Iterable


def table(columns: Iterable, rows: Iterable[Iterable]) -> str:
    """A table in Markdown, one line a row."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
