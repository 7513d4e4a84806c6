"""Kubernetes: a CronJob for each line, and the manifests around them, for kustomize."""

import re
from dataclasses import dataclass

from starview_app.maintenance.schedule.export.cron_fields import five_fields
from starview_app.maintenance.schedule.export.lines import Files, Line, render

# A run that would start later is left to catch-up: MISSED_AFTER in catchup/slots.py.
LATEST_START_SECONDS = 300
# The time to find a node and pull the image, which a Job's deadline includes.
_START_SECONDS = 300
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
_FIXED = ("kustomization.yaml", "configmap.yaml", "networkpolicy.yaml")


@dataclass(frozen=True)
class CronJob:
    """What the template needs for one CronJob."""

    line: Line

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.line.name):
            raise self.line.cannot(
                "is no name for Kubernetes",
                "write JOB= in small letters, digits and -, beginning with a letter",
            )

    @property
    def schedule(self) -> str:
        return five_fields(self.line, "Kubernetes")

    @property
    def latest_start_seconds(self) -> int:
        """The limit for a late start, at most the shortest gap between two runs: a run
        must not be taken for that of the next slot.
        """
        return min(LATEST_START_SECONDS, round(self.line.job.shortest_gap_seconds()))

    @property
    def deadline_seconds(self) -> int | None:
        longest = self.line.longest_seconds
        return longest + _START_SECONDS if longest else None

    @property
    def shell_command(self) -> str:
        """The command as catch-up starts it; Kubernetes would expand a plain $(."""
        return self.line.job.shell_command.replace("$(", "$$(")


def cron_jobs(lines: list[Line]) -> Files:
    text = render("kubernetes/cronjobs.yaml", jobs=[CronJob(line) for line in lines])
    files = {name: render(f"kubernetes/{name}") for name in _FIXED}
    return {**files, "cronjobs.yaml": text}
