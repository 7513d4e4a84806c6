"""clearsessions: which sessions go, and that nothing else in Redis does."""

import pickle
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.utils import timezone
from django_redis import get_redis_connection

from demo.services import LocalServices
from starview_app.maintenance.jobs.sessions import clear as job
from tests.conftest import Manage

pytestmark = pytest.mark.django_db(transaction=True)

PREFIX = "starview:1:django.contrib.sessions.cache"
# What else is in the same database: of the cache, of Celery, and what looks alike.
OTHERS = (
    "starview:1:badge_progress:7",
    "starview:1:platform_stats",
    "celery",
    "_kombu.binding.celery",
    "django.contrib.sessions.cacheabc",
    "starview:2:django.contrib.sessions.cacheabc",
    "other:1:django.contrib.sessions.cacheabc",
)


@pytest.fixture
def redis(services: LocalServices, settings: Any) -> Iterator[Any]:
    settings.CACHES = {
        "default": settings.CACHES["default"] | {"LOCATION": services.redis_url}
    }
    client = get_redis_connection("default")
    client.flushdb()
    yield client
    client.flushdb()
    cache.close()


def add_sessions(client: Any, count: int, *, seconds: int | None) -> None:
    for number in range(count):
        kind = "endless" if seconds is None else "live"
        client.set(f"{PREFIX}{kind}{number:04d}", pickle.dumps({}), ex=seconds)


def keys(client: Any) -> set[str]:
    return {key.decode() for key in client.scan_iter()}


def test_sessions_without_an_expiry_go_and_nothing_else(
    redis: Any, manage: Manage
) -> None:
    add_sessions(redis, 30, seconds=1_209_600)
    add_sessions(redis, 7, seconds=None)
    for key in OTHERS:
        redis.set(key, "kept")

    done = manage("clearsessions")

    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Found 30 live session(s) in Redis\n"
        "Removed 7 session(s) without an expiry\n"
        "Removed 0 expired session(s) from the database\n"
    )
    live = {f"{PREFIX}live{number:04d}" for number in range(30)}
    assert keys(redis) == {*OTHERS, *live}


def test_more_sessions_than_one_step_looks_at(redis: Any) -> None:
    add_sessions(redis, job.SCAN_KEYS + 10, seconds=60)
    add_sessions(redis, job.SCAN_KEYS + 10, seconds=None)

    result = job.clear_sessions(
        now=timezone.now(), redis=redis, key_prefix=PREFIX, should_stop=lambda: False
    )

    assert result.counts["endless"] == job.SCAN_KEYS + 10
    assert len(keys(redis)) == job.SCAN_KEYS + 10


def test_the_sessions_that_the_web_service_writes_are_the_ones(redis: Any) -> None:
    from django.contrib.sessions.backends.cache import SessionStore

    session = SessionStore()
    session["_auth_user_id"] = "7"
    session.save()

    (key,) = keys(redis)
    assert key == f"{PREFIX}{session.session_key}"
    assert 0 < redis.ttl(key) <= 1_209_600


def test_a_dry_run_counts_and_removes_nothing(redis: Any, manage: Manage) -> None:
    add_sessions(redis, 3, seconds=None)
    make_session("old", days=-1)

    done = manage("clearsessions", "--dry-run")

    assert "Would remove 3 session(s) without an expiry" in done.stdout
    assert "Would remove 1 expired session(s) from the database" in done.stdout
    assert len(keys(redis)) == 3
    assert Session.objects.count() == 1


def make_session(name: str, *, days: int) -> None:
    expire_date = timezone.now() + timedelta(days=days)
    Session.objects.create(session_key=name, session_data="", expire_date=expire_date)


def test_expired_sessions_go_from_the_database(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BATCH_ROWS", 2)
    for number in range(5):
        make_session(f"old{number}", days=-1)
    make_session("live", days=1)

    result = job.clear_sessions(
        now=timezone.now(), redis=redis, key_prefix=PREFIX, should_stop=lambda: False
    )

    assert result.counts == {"expired": 5, "live": 0, "endless": 0}
    assert [session.session_key for session in Session.objects.all()] == ["live"]


def test_it_stops_between_two_steps(redis: Any) -> None:
    add_sessions(redis, 1, seconds=None)

    result = job.clear_sessions(
        now=timezone.now(), redis=redis, key_prefix=PREFIX, should_stop=lambda: True
    )

    assert result.interrupted
    assert len(keys(redis)) == 1


@pytest.mark.parametrize(
    "url", ["redis://:secret-password@127.0.0.1:9/0", "redis://nowhere.invalid:6379/0"]
)
def test_a_dead_redis_is_one_line_and_the_table_is_clean_all_the_same(
    url: str, manage: Manage
) -> None:
    make_session("old", days=-1)

    done = manage("clearsessions", env={"REDIS_URL": url})

    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("CommandError")]
    assert "the sessions in Redis were not looked at: " in line
    assert "HINT: is REDIS_URL the web service's" in line
    assert "secret-password" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not Session.objects.exists()
