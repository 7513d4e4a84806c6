"""What the demo prints: headings, colours on a terminal, and outputs cut short."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby

WIDTH = 100
_EXAMPLES = 3
# A line of the log, or one that only separates.
_UNTOLD = re.compile(r"\d{4}-\d\d-\d\dT\S+ \[|[=\-\s]*$")
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "cyan": 36}


def styled(text: str, *styles: str) -> str:
    """Return `text` in `styles`, or unchanged without a terminal or with NO_COLOR."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    codes = ";".join(str(_STYLES[style]) for style in styles)
    return f"\x1b[{codes}m{text}\x1b[0m"


def heading(text: str) -> None:
    print(f"\n{styled(text, 'bold', 'cyan')}", flush=True)


def say(text: str, *styles: str) -> None:
    print(f"  {styled(clipped(text), *styles)}", flush=True)


def clipped(text: str) -> str:
    """One line of WIDTH on a terminal; no control character reaches it."""
    safe = "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in text
    )
    is_short = len(safe) <= WIDTH or not sys.stdout.isatty()
    return safe if is_short else f"{safe[: WIDTH - 1]}…"


def in_short(output: str) -> Iterator[str]:
    """Yield the lines except log lines; of similar ones three and a number."""
    lines = [line for line in output.splitlines() if not _UNTOLD.match(line)]
    for _, alike in groupby(lines, _kind):
        yield from _first(list(alike))


def _first(lines: list[str]) -> Iterable[str]:
    if len(lines) <= _EXAMPLES + 1:
        return lines
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    more = f"{indent}… and {len(lines) - _EXAMPLES} more"
    return [*lines[:_EXAMPLES], more]


def _kind(line: str) -> tuple[str, ...]:
    """Return what similar lines have in common.

    That is their bullet, or their words after the first that have no digits.
    """
    words = line.split()
    if line.startswith(" "):
        return (" ", *(word for word in words[:2] if _is_mark(word)))
    return tuple(word for word in words[1:] if not re.search(r"\d", word))


def _is_mark(word: str) -> bool:
    return word.rstrip(":").isalpha() and word.endswith(":") or not word[0].isalnum()
