"""What /bin/sh would make of a line: its commands and their words, unexpanded."""

import re
from typing import NamedTuple

# What /bin/sh sees in a line.
_TOKEN = re.compile(
    r"""
    (?P<nothing>\s+|\#.*)
    | (?P<redirection>\d*(?:>>|>\||<<-?|<>|[<>]&|[<>])\s*)
    | (?P<operator>&&|\|\||;;|[;&|()])
    | (?P<word>(?:[^\s;&|<>()'"\\`]|\\.|'[^']*'|"(?:[^"\\]|\\.)*"|`[^`]*`)+)
    """,
    re.VERBOSE,
)
_QUOTED = re.compile(r"""\\(.)|'([^']*)'|"((?:[^"\\]|\\.)*)\"""")


class ShellLine(NamedTuple):
    """A line as the shell takes it apart; one command, with no word, at the least."""

    commands: list[list[str]]
    operators: list[str]
    is_whole: bool = True  # every quotation ends


def read_shell(text: str) -> ShellLine:
    commands: list[list[str]] = [[]]
    operators: list[str] = []
    is_target = False
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if not token:
            return ShellLine([[]], [], is_whole=False)
        position = token.end()
        match token.lastgroup:
            case "operator":
                commands.append([])
                operators.append(token[0])
            case "redirection":
                is_target = True
            case "word":
                if not is_target:
                    commands[-1].append(_unquoted(token[0]))
                is_target = False
    return ShellLine(commands, operators)


def _unquoted(word: str) -> str:
    return _QUOTED.sub(
        lambda quoted: (
            quoted[1] or quoted[2] or re.sub(r'\\([$`"\\])', r"\1", quoted[3] or "")
        ),
        word,
    )
