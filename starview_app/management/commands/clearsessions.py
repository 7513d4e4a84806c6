"""`clearsessions`: replaces Django's, which does nothing for sessions in Redis."""

from typing import Any

from django.contrib.sessions.backends.cache import KEY_PREFIX
from django.core.cache import cache
from django.utils import timezone
from django_redis import get_redis_connection
from redis.exceptions import RedisError

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.jobs.sessions import clear as job
from starview_app.maintenance.running.command import JobCommand
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    help = (
        "Counts the sessions in Redis and removes those without an expiry, and the"
        " expired ones from the table django_session. No other key is touched."
    )

    def run(
        self, *, should_stop: ShouldStop, dry_run: bool, **options: Any
    ) -> JobResult:
        try:
            result = job.clear_sessions(
                now=timezone.now(),
                redis=get_redis_connection("default"),
                key_prefix=cache.make_key(KEY_PREFIX),
                should_stop=should_stop,
                dry_run=dry_run,
            )
        except RedisError as error:
            raise JobError(
                f"the sessions in Redis were not looked at: {one_line(error)} HINT: is"
                " REDIS_URL the web service's, and does Redis answer?"
            ) from error
        counts = result.counts
        removed = "Would remove" if dry_run else "Removed"
        self.stdout.write(
            f"Found {counts['live']} live session(s) in Redis\n"
            f"{removed} {counts['endless']} session(s) without an expiry\n"
            f"{removed} {counts['expired']} expired session(s) from the database"
        )
        return result
