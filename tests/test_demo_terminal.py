"""What `make demo` shows of a long output."""

from contextlib import redirect_stdout
from io import StringIO

from demo.terminal import WIDTH, clipped, in_short


def listed(bullet: str, count: int) -> list[str]:
    return [f"  {bullet} person{number} (a.b@example.com)" for number in range(count)]


def test_of_many_alike_three_are_shown_and_how_many_more_there_are() -> None:
    output = ["Found 9:", *listed("-", 9), "", *listed("✓ Deleted:", 5), "Done"]

    assert list(in_short("\n".join(output))) == [
        "Found 9:",
        *listed("-", 3),
        "  … and 6 more",
        *listed("✓ Deleted:", 3),
        "  … and 2 more",
        "Done",
    ]


def test_a_few_are_shown_whole_without_log_lines_and_rules() -> None:
    log = "2026-11-29T12:05:08.926499Z [info] job_started job=a"

    assert list(in_short("\n".join([log, "=" * 80, *listed("-", 4)]))) == listed("-", 4)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_cut_for_a_terminal_alone_and_shows_no_control_character() -> None:
    long = "\x1b[2J" + "a" * WIDTH

    with redirect_stdout(StringIO()):
        assert clipped(long) == "\\x1b[2J" + "a" * WIDTH
    with redirect_stdout(Terminal()):
        assert clipped(long) == "\\x1b[2J" + "a" * (WIDTH - 8) + "…"
