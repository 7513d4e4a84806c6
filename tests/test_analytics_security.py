"""send_analytics_report: security events, from the audit log and from the archive."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.services import LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.analytics.measure import Analytics, measure
from starview_app.maintenance.jobs.analytics.period import Kind, last_whole
from starview_app.maintenance.jobs.audit_archive.archive import archive_audit_logs
from starview_app.maintenance.jobs.audit_archive.cleanup import (
    cleanup_audit_archives,
)
from starview_app.maintenance.jobs.audit_archive.restore import restore_audit_logs
from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.base import Store, StoreError
from starview_app.maintenance.stores.configured import archive_store
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.models import AuditLog
from tests.archive_chains import Place
from tests.factories import execute, make_account
from tests.test_adopt_audit_archives import adopt, json_object, make_row, txt_object

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 1, 1, 0, tzinfo=UTC)
MONTH = last_whole(Kind.MONTH, NOW)  # October
OCTOBER, SEPTEMBER = MONTH.start, MONTH.before.start
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "archives")


def event(at: datetime, kind: str = "login_failed", **columns: Any) -> AuditLog:
    return AuditLog.objects.create(event_type=kind, timestamp=at, **columns)


def archive(store: Store, *, days: int = 0, **options: Any) -> None:
    archive_audit_logs(
        **{
            "now": NOW,
            "days": days,
            "formats": ("json", "txt"),
            "store": store,
            "report": lambda event: None,
            "should_stop": lambda: False,
            **options,
        }
    )


def measured(open_store: Callable[[], Store]) -> Analytics:
    return measure(
        now=NOW, period=MONTH, open_store=open_store, should_stop=lambda: False
    )


def seen(store: Store, name: str = "login_failed") -> tuple[int | None, int | None]:
    figure = measured(lambda: store).security.figure(name)
    return figure.this, figure.before


def notes(store: Store) -> list[str]:
    return list(measured(lambda: store).security.notes)


def never() -> Store:
    raise AssertionError("the archive is not asked")


class TestTheTable:
    def test_each_type_is_counted_by_period_to_the_microsecond(self) -> None:
        event(SEPTEMBER - MOMENT)
        event(SEPTEMBER)
        event(OCTOBER - MOMENT)
        event(OCTOBER)
        event(MONTH.end - MOMENT, "password_changed")
        event(MONTH.end)

        found = measured(never).security

        assert (found.figure("login_failed").this, found.notes) == (
            1,
            ("From the audit log.",),
        )
        assert found.figure("login_failed").before == 2
        assert found.figure("password_changed").this == 1

    def test_a_log_that_reaches_back_is_enough(self) -> None:
        event(SEPTEMBER)

        assert measured(never).security.figure("login_failed").before == 1

    def test_the_types_that_matter_are_there_without_an_event(self) -> None:
        event(SEPTEMBER - DAY)

        names = [figure.name for figure in measured(never).security.events]

        assert names[:4] == [
            "login_failed",
            "login_locked",
            "permission_denied",
            "access_forbidden",
        ]

    def test_a_type_that_this_image_does_not_know_is_counted_on_one_line(self) -> None:
        event(SEPTEMBER)
        event(OCTOBER, "new\nkind")

        assert measured(never).security.figure("new\\u000akind").this == 1


class TestTheArchive:
    @pytest.mark.parametrize("compress", [False, True])
    def test_rows_that_have_left_the_table_are_counted(
        self, store: FolderStore, compress: bool
    ) -> None:
        for at in (SEPTEMBER, OCTOBER - MOMENT, OCTOBER, MONTH.end - 20 * DAY):
            event(at)
        archive(store, days=10, compress=compress)
        event(MONTH.end - DAY)

        assert AuditLog.objects.count() == 1
        assert seen(store) == (3, 2)
        assert notes(store) == [
            "4 of these events are from the archive, the others from the audit log."
        ]

    def test_only_rows_of_the_two_periods_are(self, store: FolderStore) -> None:
        event(SEPTEMBER - MOMENT)
        event(SEPTEMBER)
        archive(store)

        assert seen(store) == (0, 1)

    def test_a_row_that_was_restored_counts_once(self, store: FolderStore) -> None:
        event(OCTOBER)
        event(OCTOBER + DAY)
        archive(store)
        restore_audit_logs(
            store=store,
            report=lambda restored: None,
            should_stop=lambda: False,
            until=OCTOBER + DAY,
        )

        assert AuditLog.objects.count() == 1
        assert seen(store) == (2, 0)

    def test_a_row_that_is_in_two_archives_counts_once(
        self, store: FolderStore
    ) -> None:
        event(OCTOBER)
        event(OCTOBER + DAY)
        archive(store)
        restore_audit_logs(
            store=store, report=lambda restored: None, should_stop=lambda: False
        )
        archive(store, now=NOW + timedelta(seconds=1))

        assert AuditLog.objects.count() == 0
        assert seen(store) == (2, 0)

    def test_a_log_in_that_only_the_archive_has_is_activity(
        self, store: FolderStore
    ) -> None:
        user = make_account(joined=SEPTEMBER - DAY)
        event(SEPTEMBER, "login_success", user=user)
        event(OCTOBER, "login_success", user=user, success=False)
        archive(store)

        (active,) = [
            figure
            for figure in measured(lambda: store).members
            if figure.name == "active members"
        ]

        assert (active.this, active.before) == (0, 1)

    def test_an_archive_of_the_first_version_counts_too(
        self, bucket: LocalServices
    ) -> None:
        stem = "audit_logs_20261001_to_20261003_20261101_040000"
        rows = [
            make_row(30, timestamp=OCTOBER.isoformat()),
            make_row(31, timestamp=(OCTOBER + DAY).isoformat()),
        ]
        place = Place(bucket)
        place.write(f"{stem}.json", json_object(rows))
        place.write(f"{stem}.txt", txt_object(rows))
        adopt()

        assert seen(archive_store()) == (2, 0)


class TestNotKnown:
    """What cannot be read is not known, with the reason; the report is made."""

    @pytest.fixture(autouse=True)
    def _two_months(self, store: FolderStore) -> None:
        for at in (SEPTEMBER, OCTOBER):
            event(at)
        archive(store)
        event(MONTH.end)

    @pytest.mark.parametrize("error", [JobError, StoreError])
    def test_a_store_that_cannot_be_opened(self, error: type[Exception]) -> None:
        def broken() -> Store:
            raise error("it is on holiday\n")

        found = measured(broken)

        figure = found.security.figure("login_failed")
        assert (figure.this, figure.before) == (None, None)
        assert found.security.notes[1:] == (
            "Not known for October 2026: it is on holiday\\u000a",
            "Not known for September 2026: it is on holiday\\u000a",
        )
        assert found.community[0].this == 0

    def test_an_object_whose_bytes_are_not_the_listed_ones(
        self, store: FolderStore
    ) -> None:
        (october,) = store._folder.glob("audit_logs_20261001*.json")
        body = october.read_bytes()
        october.write_bytes(body.replace(b"login_failed", b"login_locked"))

        assert seen(store) == (None, 1)
        assert notes(store)[1:] == [
            f"Not known for October 2026: {october.name} is not what was archived"
        ]

    def test_an_object_that_is_not_there_any_more(self, store: FolderStore) -> None:
        (september,) = store._folder.glob("audit_logs_20260901*.json")
        september.unlink()

        assert seen(store) == (1, None)

    @pytest.mark.parametrize("body", [b"", b'{"id":1}\n', b'{"id":"x"\n' * 3])
    def test_an_object_that_is_something_else(
        self, store: FolderStore, body: bytes
    ) -> None:
        (october,) = store._folder.glob("audit_logs_20261001*.json")
        october.write_bytes(body)

        assert seen(store) == (None, 1)

    def test_an_archive_for_people_only(self, store: FolderStore) -> None:
        execute("DELETE FROM maintenance_auditarchive")
        execute("DELETE FROM maintenance_auditmanifest")
        for path in store._folder.iterdir():
            path.unlink()
        event(OCTOBER + DAY)
        archive(store, formats=("txt",), days=1)

        assert seen(store)[0] is None
        assert "is text for people only" in notes(store)[1]

    def test_an_archive_that_was_removed(self, store: FolderStore) -> None:
        cleanup_audit_archives(
            now=NOW,
            days=35,
            store=store,
            report=lambda event: None,
            should_stop=lambda: False,
        )

        assert seen(store) == (1, None)
        assert notes(store)[1:] == [
            "Not known for September 2026: an archive of that time was removed"
        ]

    def test_an_archive_of_the_first_version_that_is_not_adopted(
        self, store: FolderStore
    ) -> None:
        name = "audit_logs_20260820_to_20260902_20261002_040000.json"
        (store._folder / name).write_bytes(json_object([make_row(9)]))

        assert seen(store) == (1, None)
        assert notes(store)[1:] == [
            f"Not known for September 2026: {name} is not adopted: adopt_audit_archives"
        ]

    def test_a_manifest_that_is_gone_with_the_database(
        self, store: FolderStore
    ) -> None:
        event(OCTOBER + DAY)
        archive(store, now=NOW + timedelta(hours=1))
        AuditArchive.objects.all().delete()
        AuditManifest.objects.all().delete()
        min(store._folder.glob("audit_manifest_*")).unlink()

        assert seen(store) == (None, None)
        assert "audit_manifest_000001 is missing" in notes(store)[1]


def test_it_can_be_stopped_while_it_reads(store: FolderStore) -> None:
    event(OCTOBER)
    archive(store)

    with pytest.raises(StopRequested):
        measure(
            now=NOW, period=MONTH, open_store=lambda: store, should_stop=lambda: True
        )
