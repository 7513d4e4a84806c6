"""`diagnose_db`: shows the state of the database, without a shell on its server."""

import json
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.cache import KEY_PREFIX
from django.core.cache import cache
from django.core.management.base import CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DatabaseError, connection
from django.utils import timezone
from django_redis import get_redis_connection

from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.history.lines import table
from starview_app.maintenance.jobs.diagnosis.diagnose import diagnose
from starview_app.maintenance.jobs.diagnosis.section import Section, Situation
from starview_app.maintenance.jobs.diagnosis.work import PROVED_BY
from starview_app.maintenance.running.command import OneLineCommand
from starview_app.maintenance.running.ledger import short_waits
from starview_app.maintenance.schedule.registry import (
    names_of,
    options_of,
    scheduled_jobs,
)
from starview_app.maintenance.text import one_line


class Command(OneLineCommand):
    help = (
        "Looks at the database and changes nothing: connection, server and limits,"
        " sizes, dead rows, indexes, long transactions and locks, migrations, the"
        " tables, columns and rights that the jobs need, the clock, and what each job"
        " would do now. Exit code 1 when something is wrong. Not for schedules."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", dest="as_json", action="store_true", help="one JSON object"
        )

    def handle(self, *, as_json: bool, **options: Any) -> None:
        sections: list[Section] = []
        problems: list[str] = []
        try:
            with short_waits():
                for section in diagnose(_situation()):
                    sections.append(section)
                    problems += section.problems
                    if not as_json:
                        self._print(section)
        except DatabaseError as error:
            text = explain(error)
            if text is None:
                raise
            problems.append(text)
        if as_json:
            self.stdout.write(_as_json(sections, problems))
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CommandError(one_line(f"{problems[0]}{more}"))
        if not as_json:
            self.stdout.write("\n✓ Nothing is wrong")

    def _print(self, section: Section) -> None:
        self.stdout.write(f"\n{section.title.upper()}")
        for line in _lines(section):
            self.stdout.write(line)
        for problem in section.problems:
            self.stdout.write(f"  ✗ {one_line(problem)}")


def _situation() -> Situation:
    """Return the input of the checks, with the options of the crontab's lines."""
    lines = scheduled_jobs(must_exist=False)
    mails = options_of("cleanup_email_suppressions", lines)
    return Situation(
        now=timezone.now(),
        host=str(connection.settings_dict["HOST"]),
        unverified_days=options_of("cleanup_unverified_users", lines)["days"],
        link_days=settings.ACCOUNT_EMAIL_CONFIRMATION_EXPIRE_DAYS,
        soft_bounce_days=mails["soft_bounce_days"],
        stale_days=mails["stale_days"],
        archive_days=options_of("archive_audit_logs", lines)["days"],
        redis=get_redis_connection("default"),
        session_prefix=cache.make_key(KEY_PREFIX),
        names_of_runs={command: names_of(command, lines) for command in PROVED_BY},
    )


def _lines(section: Section) -> Iterable[str]:
    rows = section.rows
    if not rows:
        yield "  none"
    elif len(rows) == 1:
        width = max(map(len, rows[0]))
        for name, value in rows[0].items():
            yield f"  {name.replace('_', ' '):<{width}}  {_shown(value)}"
    else:
        head = tuple(name.replace("_", " ") for name in rows[0])
        numbers = tuple(
            place
            for place, value in enumerate(rows[0].values())
            if isinstance(value, int) and not isinstance(value, bool)
        )
        body = [tuple(map(_shown, row.values())) for row in rows]
        for line in table([head, *body], right=numbers):
            yield f"  {line}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else one_line(value)


def _as_json(sections: list[Section], problems: list[str]) -> str:
    facts = {
        "problems": problems,
        "sections": {section.title: section.rows for section in sections},
    }
    return json.dumps(facts, cls=DjangoJSONEncoder, default=str)
