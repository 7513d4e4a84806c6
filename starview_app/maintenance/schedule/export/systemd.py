"""systemd: a timer and a service for each line, for a virtual machine."""

from dataclasses import dataclass

from starview_app.maintenance.schedule.export.lines import Files, Line, render
from starview_app.maintenance.schedule.export.on_calendar import on_calendar

# systemd's limit is later than that of the line's own `timeout` by this much.
_SLACK_SECONDS = 60
_ESCAPES = str.maketrans({"\\": r"\\", "'": r"\'", "%": "%%", "$": "$$"})


@dataclass(frozen=True)
class Unit:
    """What the templates need for one job."""

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
        """The command as catch-up starts it, quoted for ExecStart=."""
        return f"'{self.line.job.shell_command.translate(_ESCAPES)}'"


def units(lines: list[Line]) -> Files:
    return {
        f"{line.name}.{kind}": render(f"systemd/job.{kind}", unit=Unit(line))
        for line in lines
        for kind in ("service", "timer")
    }
