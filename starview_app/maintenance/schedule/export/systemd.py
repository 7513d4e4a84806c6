"""Timers and services of systemd, for a virtual machine."""

from dataclasses import dataclass

from starview_app.maintenance.schedule.export.lines import Files, Line, render
from starview_app.maintenance.schedule.export.on_calendar import on_calendar

# The line's own `timeout` comes first.
_SLACK_SECONDS = 60
_ESCAPES = str.maketrans({"\\": r"\\", "'": r"\'", "%": "%%", "$": "$$"})


@dataclass(frozen=True)
class Unit:
    """What differs from one job's units to the next's."""

    line: Line

    @property
    def calendar(self) -> list[str]:
        return on_calendar(self.line)

    @property
    def runtime_seconds(self) -> int | None:
        longest = self.line.longest_seconds
        return longest + _SLACK_SECONDS if longest else None

    @property
    def shell_command(self) -> str:
        """As catch-up starts it, in the quotes of ExecStart=."""
        return f"'exec env {self.line.command.translate(_ESCAPES)}'"


def units(lines: list[Line]) -> Files:
    return {
        f"{line.name}.{kind}": render(f"systemd/job.{kind}", unit=Unit(line))
        for line in lines
        for kind in ("service", "timer")
    }
