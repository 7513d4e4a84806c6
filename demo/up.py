"""`python -m demo.up`: prepare the demo's data, run the jobs, then serve the page.

The container `page` of docker-compose.yml; healthy once it serves.
"""

from __future__ import annotations

import os
import subprocess
import sys

import django
from django.db import connections

from demo import setup

# Of the container: docker-compose.yml publishes the port on 127.0.0.1.
_ADDRESS, _PORT = "0.0.0.0", 8090  # noqa: S104
_BY_HAND = ("adopt_audit_archives", "verify_audit_archives")
_NOT_ENDED = ("running", "interrupted", "crashed")
_VARIABLES = {"DJANGO_SETTINGS_MODULE": "starview.settings"}  # not the page's
_STOPPED = 143  # as a shell shows SIGTERM


def main() -> int:
    prepared = subprocess.run([sys.executable, setup.__file__], check=False)
    if prepared.returncode:
        return prepared.returncode
    os.environ["DJANGO_SETTINGS_MODULE"] = "demo.page_settings"
    django.setup()
    if stopped := run_jobs():
        return stopped
    setup.say(f"Open {os.environ.get('PAGE_URL', f'http://127.0.0.1:{_PORT}')}")
    _serve()
    return 0


def run_jobs() -> int:
    """Run each line that has not been run yet, as the schedule would, then catch up.

    So an `up` that was interrupted goes on with the next one, and what was missed while
    all was stopped is done before the worker is asked how it is. Returns 0, or after a
    signal, which goes to the running job, 143.
    """
    from starview_app.maintenance.catchup.launch import Launcher
    from starview_app.maintenance.schedule.crontab import ScheduledJob
    from starview_app.maintenance.schedule.registry import scheduled_jobs

    lines = scheduled_jobs()
    jobs = [line for line in lines if line.django_command != "catch_up"]
    by_hand = [ScheduledJob(0, "", f"python manage.py {name}") for name in _BY_HAND]
    catch_up = [line for line in lines if line not in jobs]
    launcher = Launcher()
    with launcher.passing_signals_on():
        for line in (*jobs, *by_hand, *catch_up):
            if launcher.should_stop:
                return _STOPPED
            if line in catch_up:
                setup.say(f"What was missed: {line.command}")
            elif _was_run(line.job, line.command):
                continue
            else:
                setup.say(f"Once, so that there is something to see: {line.command}")
            launcher.run(line, _VARIABLES)
    return _STOPPED if launcher.should_stop else 0


def _was_run(job: str, command: str) -> bool:
    from starview_app.maintenance.models import JobRun

    runs = JobRun.objects.exclude(host="before-the-demo")
    if job:  # whatever became of its time: catch-up looks after that
        found = runs.filter(job=job).exists()
    else:
        name = command.rpartition(" ")[2]
        ended = runs.exclude(outcome__in=_NOT_ENDED)
        found = ended.filter(command__startswith=name).exists()
    connections.close_all()  # two processes must not share a session
    return found


def _serve() -> None:
    from django.core.servers.basehttp import run
    from django.core.wsgi import get_wsgi_application

    run(_ADDRESS, _PORT, get_wsgi_application(), threading=True)


if __name__ == "__main__":
    sys.exit(main())
