"""`python -m demo.up`: prepare the demo's data, run each job once, then serve the page.

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


def main() -> int:
    prepared = subprocess.run([sys.executable, setup.__file__], check=False)
    if prepared.returncode:
        return prepared.returncode
    os.environ["DJANGO_SETTINGS_MODULE"] = "demo.page_settings"
    django.setup()
    _run_jobs_once()
    setup.say(f"Open {os.environ.get('PAGE_URL', f'http://127.0.0.1:{_PORT}')}")
    _serve()
    return 0


def _run_jobs_once() -> None:
    """As the schedule would, unless somebody has done so before."""
    from starview_app.maintenance.models import JobRun
    from starview_app.maintenance.schedule.registry import scheduled_jobs

    if JobRun.objects.exclude(host="before-the-demo").exists():
        return
    connections.close_all()
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "starview.settings"}
    by_hand = [
        f"{sys.executable} manage.py {name}"
        for name in ("adopt_audit_archives", "verify_audit_archives")
    ]
    for command in (*(job.command for job in scheduled_jobs()), *by_hand):
        setup.say(f"Once, so that there is something to see: {command}")
        words = ["/bin/sh", "-c", command]
        subprocess.run(words, env=environment, check=False)


def _serve() -> None:
    from django.core.servers.basehttp import run
    from django.core.wsgi import get_wsgi_application

    run(_ADDRESS, _PORT, get_wsgi_application(), threading=True)


if __name__ == "__main__":
    sys.exit(main())
