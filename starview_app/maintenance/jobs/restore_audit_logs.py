"""Bring archived audit rows back into the table, as they were.

An object is copied into a temporary table while it is hashed; only when the hash is the
one that its manifest lists does one statement move its rows into the audit log, in the
same transaction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.jobs.audit_archive.chain import (
    Chain,
    read_chain,
    take_inventory,
)
from starview_app.maintenance.jobs.audit_archive.format import kind_of
from starview_app.maintenance.jobs.audit_archive.manifests import Entry
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.errors import JobError
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.stores.base import Store, StoreError

COPY_BYTES = 1 << 20
# The lines of an object as they are: neither character occurs in JSON text.
_COPY_LINES = r"""
    COPY pg_temp.restored_line (line)
    FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
"""
_MAKE_TABLES = """
    CREATE TEMPORARY TABLE restored_line (line text) ON COMMIT DROP;
    CREATE TEMPORARY TABLE restored (
        id bigint,
        event_type text,
        "timestamp" timestamptz,
        success boolean,
        message text,
        user_id bigint,
        username text,
        ip_address inet,
        user_agent text,
        metadata jsonb
    ) ON COMMIT DROP
"""
# Head and tail of the object are no rows. JSON's null comes back as SQL's, which the
# column does not take: only the metadata `null` can have been meant.
_READ_ROWS = """
    INSERT INTO pg_temp.restored
    SELECT
        log.id, log.event_type, log.timestamp, log.success, log.message, log.user_id,
        log.username, log.ip_address, log.user_agent, coalesce(log.metadata, 'null')
    FROM pg_temp.restored_line,
        json_to_record(rtrim(line, ',')::json) AS log (
            id bigint,
            event_type text,
            "timestamp" timestamptz,
            success boolean,
            message text,
            user_id bigint,
            username text,
            ip_address inet,
            user_agent text,
            metadata jsonb
        )
    WHERE line LIKE '{"id":%'
"""
_LEAVE_OTHERS_OUT = """
    DELETE FROM pg_temp.restored
    WHERE
        "timestamp" < coalesce(%(since)s, '-infinity'::timestamptz)
        OR "timestamp" >= coalesce(%(until)s, 'infinity'::timestamptz)
"""
# As the web service does when it deletes an account: what happened stays on record.
_UNLINK = """
    UPDATE pg_temp.restored AS log
    SET user_id = NULL
    WHERE
        user_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM auth_user WHERE auth_user.id = log.user_id)
"""
_COUNT_PRESENT = """
    SELECT
        count(*),
        count(*) FILTER (
            WHERE (
                present.event_type, present.timestamp, present.success, present.message,
                present.username, present.ip_address, present.user_agent,
                present.metadata
            ) IS DISTINCT FROM (
                log.event_type, log.timestamp, log.success, log.message,
                log.username, log.ip_address, log.user_agent,
                log.metadata
            )
        )
    FROM pg_temp.restored AS log
    JOIN starview_app_auditlog AS present ON present.id = log.id
"""
_INSERT = """
    INSERT INTO starview_app_auditlog (
        id, event_type, "timestamp", success, message, user_id,
        username, ip_address, user_agent, metadata
    )
    SELECT
        id, event_type, "timestamp", success, message, user_id,
        username, ip_address, user_agent, metadata
    FROM pg_temp.restored
    ON CONFLICT (id) DO NOTHING
"""
# In a database that was built anew the counter begins below the restored ids.
_ADVANCE_COUNTER = """
    SELECT setval(sequence.name, highest.id)
    FROM
        (SELECT pg_get_serial_sequence('starview_app_auditlog', 'id') AS name)
            AS sequence,
        (SELECT max(id) AS id FROM pg_temp.restored) AS highest
    WHERE highest.id > coalesce(pg_sequence_last_value(sequence.name::regclass), 0)
"""


@dataclass(frozen=True)
class Restored:
    """One object. `present` rows were there already, `differing` of them not equal.

    `unlinked` rows belonged to accounts that are gone.
    """

    name: str
    rows: int
    present: int
    differing: int
    unlinked: int


Report = Callable[[Restored], None]


def restore_audit_logs(
    *,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    name: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    dry_run: bool = False,
) -> JobResult:
    """Restore the object `name`, or every row from `since` up to, not with, `until`.

    Rows come back with their ids and all fields unchanged, but for the link to an
    account that no longer exists. A row whose id is in the table is skipped; one that
    is there with other contents is a problem. Each object is one transaction: it is
    restored whole or not at all, and running twice is safe. An object that no manifest
    lists, or whose bytes are not the listed ones, is refused.

    Counts: objects, restored, skipped. Raises JobError.
    """
    run = _Restoration(store, report, should_stop, since, until, dry_run)
    try:
        return run.run(name)
    except StoreError as error:
        raise JobError(f"{run.what_is_done}: {error}") from error


class _Restoration:
    def __init__(
        self,
        store: Store,
        report: Report,
        should_stop: ShouldStop,
        since: datetime | None,
        until: datetime | None,
        dry_run: bool,  # noqa: FBT001 - private
    ) -> None:
        self._store = store
        self._report = report
        self._should_stop = should_stop
        self._since = since
        self._until = until
        self._dry_run = dry_run
        self._result = JobResult({"objects": 0, "restored": 0, "skipped": 0})

    @property
    def what_is_done(self) -> str:
        count = self._result.counts["restored"]
        return f"{count} rows are restored, the rest failed"

    def run(self, name: str) -> JobResult:
        chain = read_chain(self._store, take_inventory(self._store))
        entries = [_listed(chain, name)] if name else self._between(chain)
        try:
            for entry in entries:
                if self._should_stop():
                    raise StopRequested
                self._restore(chain, entry)
        except StopRequested:
            self._result.interrupted = True
        return self._result

    def _between(self, chain: Chain) -> list[Entry]:
        """The JSON objects with rows from `since` up to, not with, `until`."""
        entries = [
            entry
            for entry in chain.entries.values()
            if (self._until is None or entry.first_timestamp < self._until)
            and (self._since is None or entry.last_timestamp >= self._since)
        ]
        found = [entry for entry in entries if kind_of(entry.name) == "json"]
        has_json = {_stem(entry.name) for entry in found}
        self._result.problems += [
            f"{entry.name} has rows of these days, as text for people only, and cannot"
            " be restored"
            for entry in entries
            if _stem(entry.name) not in has_json
        ]
        return sorted(found, key=lambda entry: (entry.first_timestamp, entry.name))

    def _restore(self, chain: Chain, entry: Entry) -> None:
        if entry.name in chain.doubtful:
            raise JobError(
                f"{self.what_is_done}: {entry.name} is listed by a manifest that was"
                " changed HINT: verify_audit_archives says which"
            )
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_MAKE_TABLES)
            self._copy(cursor, entry)
            restored = self._prepare(cursor, entry)
            if not self._dry_run and restored.rows:
                cursor.execute(_INSERT)
                restored = replace(restored, present=restored.rows - cursor.rowcount)
                cursor.execute(_ADVANCE_COUNTER)
        counts = self._result.counts
        counts["objects"] += 1
        counts["restored"] += restored.rows - restored.present
        counts["skipped"] += restored.present
        if restored.differing:
            self._result.problems.append(
                f"{restored.differing} rows of {entry.name} are in the table with other"
                " contents and were left as they are"
            )
        self._report(restored)

    def _copy(self, cursor: CursorWrapper, entry: Entry) -> None:
        """Have the object's rows, all of them and proved, in the temporary table."""
        pieces = self._store.read(entry.name)
        source = Source(entry.name, pieces, self._should_stop)
        with connection.wrap_database_errors:  # Django does not know copy_expert
            cursor.copy_expert(_COPY_LINES, _File(source), COPY_BYTES)
        digest = source.digest()
        if (digest.sha256, digest.size_bytes) != (entry.sha256, entry.size_bytes):
            raise JobError(
                f"{self.what_is_done}: {entry.name} is not what was archived, its"
                f" SHA-256 is {digest.sha256} instead of {entry.sha256} HINT: restore"
                " it from a copy of the bucket; verify_audit_archives looks at the rest"
            )
        cursor.execute(_READ_ROWS)
        if cursor.rowcount != entry.rows:
            raise JobError(
                f"{self.what_is_done}: {entry.name} has {cursor.rowcount} rows instead"
                f" of {entry.rows}"
            )

    def _prepare(self, cursor: CursorWrapper, entry: Entry) -> Restored:
        """Leave out what was not asked for, and look at what is there already."""
        rows = entry.rows
        if self._since or self._until:
            bounds = {"since": self._since, "until": self._until}
            cursor.execute(_LEAVE_OTHERS_OUT, bounds)
            rows -= cursor.rowcount
        cursor.execute(_UNLINK)
        unlinked = cursor.rowcount
        cursor.execute(_COUNT_PRESENT)
        present, differing = cursor.fetchone()
        return Restored(entry.name, rows, present, differing, unlinked)


class _File:
    """What COPY reads from: `pieces` cut to the size that it asks for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def read(self, size_bytes: int) -> bytes:
        piece = self._rest or next(self._pieces, b"")
        self._rest = piece[size_bytes:]
        return piece[:size_bytes]


def _stem(name: str) -> str:
    """What the JSON and the TXT object of a segment have in common."""
    return name.removesuffix(".gz").rpartition(".")[0]


def _listed(chain: Chain, name: str) -> Entry:
    if entry := chain.entries.get(name):
        if kind_of(name) != "json":
            raise JobError(
                f"{name} is text for people HINT: restore {_stem(name)}.json, if the"
                " archive was written in both formats"
            )
        return entry
    raise JobError(
        f"nothing was restored: no manifest lists {name!r} HINT:"
        " verify_audit_archives --sample=0 names every object"
    )
