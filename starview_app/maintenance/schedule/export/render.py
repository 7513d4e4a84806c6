"""Render: a Blueprint for one worker with supercronic, or for the guide's cron jobs."""

from starview_app.maintenance.schedule.export.cron_fields import five_fields
from starview_app.maintenance.schedule.export.lines import Files, Line, render

# The time between SIGTERM and SIGKILL that Render allows for a worker.
_SHUTDOWN_SECONDS = range(30, 301)


def worker(lines: list[Line]) -> Files:
    kill_after = max(line.kill_after_seconds for line in lines)
    shutdown_seconds = min(max(kill_after, _SHUTDOWN_SECONDS[0]), _SHUTDOWN_SECONDS[-1])
    text = render("render-worker.yaml", lines=lines, shutdown_seconds=shutdown_seconds)
    return {"render.yaml": text}


def cron_jobs(lines: list[Line]) -> Files:
    rows = [(line, five_fields(line, "Render")) for line in lines]
    return {"render-cron.yaml": render("render-cron.yaml", rows=rows)}
