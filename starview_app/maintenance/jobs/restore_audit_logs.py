"""Bring archived audit rows back into the table, as they were.

An object is copied into a temporary table while it is hashed; only when the hash is the
one that its manifest lists does one statement move its rows into the audit log, in the
same transaction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from django.db import DatabaseError, DataError, IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import ForeignKeyViolation

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.chain import (
    STRAY,
    Chain,
    nothing_here,
    read_chain,
    take_inventory,
)
from starview_app.maintenance.jobs.audit_archive.format import kind_of
from starview_app.maintenance.jobs.audit_archive.manifests import Entry
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Digest,
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import ObjectMissingError, Store, StoreError

COPY_BYTES = 1 << 20
# An account was deleted while its rows came back: they come back without it.
ATTEMPTS = 3
BEGIN = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)
# The lines of an object as they are: neither character occurs in JSON text.
_COPY_LINES = r"""
    COPY pg_temp.restored_line (line)
    FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
"""
_COLUMNS = """
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
"""
_MAKE_TABLES = f"""
    CREATE TEMPORARY TABLE restored_line (line text) ON COMMIT DROP;
    CREATE TEMPORARY TABLE restored ({_COLUMNS}) ON COMMIT DROP
"""
# Head and tail of the object are no rows. JSON's null comes back as SQL's, which the
# column does not take: only the metadata `null` can have been meant.
_READ_ROWS = f"""
    INSERT INTO pg_temp.restored
    SELECT
        log.id, log.event_type, log.timestamp, log.success, log.message, log.user_id,
        log.username, log.ip_address, log.user_agent, coalesce(log.metadata, 'null')
    FROM pg_temp.restored_line,
        json_to_record(rtrim(line, ',')::json) AS log ({_COLUMNS})
    WHERE line LIKE '{{"id":%'
"""
_LEAVE_OTHERS_OUT = """
    DELETE FROM pg_temp.restored
    WHERE
        "timestamp" < %(since)s
        OR "timestamp" >= %(until)s
"""
# As the web service does when it deletes an account: what happened stays on record.
_UNLINK = """
    UPDATE pg_temp.restored AS log
    SET user_id = NULL
    WHERE
        user_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM auth_user WHERE auth_user.id = log.user_id)
"""
# The ids of an object lie close together. The index on them finds what the table has
# between the first and the last, whatever the planner guesses of a temporary table. A
# link that only one of the two has was removed with its account.
_COMPARE = """
    SELECT count(*), count(*) FILTER (WHERE is_other), min(id) FILTER (WHERE is_other)
    FROM (
        SELECT
            log.id,
            present.user_id <> log.user_id
            OR (
                present.event_type, present.timestamp, present.success, present.message,
                present.username, present.ip_address, present.user_agent,
                present.metadata
            ) IS DISTINCT FROM (
                log.event_type, log.timestamp, log.success, log.message,
                log.username, log.ip_address, log.user_agent,
                log.metadata
            ) AS is_other
        FROM pg_temp.restored AS log
        JOIN starview_app_auditlog AS present ON present.id = log.id
        WHERE
            present.id >= (SELECT min(id) FROM pg_temp.restored)
            AND present.id <= (SELECT max(id) FROM pg_temp.restored)
    ) AS compared
"""
_INSERT = """
    INSERT INTO starview_app_auditlog (
        id, event_type, "timestamp", success, message, user_id,
        username, ip_address, user_agent, metadata
    )
    OVERRIDING SYSTEM VALUE
    SELECT
        id, event_type, "timestamp", success, message, user_id,
        username, ip_address, user_agent, metadata
    FROM pg_temp.restored
    ON CONFLICT (id) DO NOTHING
"""
# Quoted as SQL needs it; NULL when the ids come from elsewhere.
_COUNTER = "SELECT pg_get_serial_sequence('starview_app_auditlog', 'id')"
# In a database that was built anew the counter begins below the restored ids. An id at
# the very end of its range did not come from it, and would use it up.
_ADVANCE_COUNTER = """
    SELECT setval(%(counter)s, highest.id)
    FROM
        {counter} AS counter,
        (
            SELECT max(log.id) AS id
            FROM pg_temp.restored AS log
            JOIN pg_sequence AS sequence
                ON sequence.seqrelid = %(counter)s::regclass
                AND log.id < sequence.seqmax / 10 * 9
        ) AS highest
    WHERE highest.id >= counter.last_value
"""


@dataclass(frozen=True)
class Restored:
    """One object. `present` rows were there already, `differing` of them not equal.

    `unlinked` rows belonged to accounts that are gone.
    """

    name: str
    rows: int
    present: int = 0
    differing: int = 0
    first_differing_id: int | None = None
    unlinked: int = 0


Report = Callable[[Restored], None]


class _RefusedError(Exception):
    """An object that cannot be trusted, or is not there; the others may be."""


def restore_audit_logs(
    *,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    name: str = "",
    since: datetime = BEGIN,
    until: datetime = END,
    dry_run: bool = False,
) -> JobResult:
    """Restore the object `name`, or every row from `since` up to, not with, `until`.

    Rows come back with their ids and all fields unchanged, but for the link to an
    account that no longer exists. A row whose id is in the table is skipped; one that
    is there with other contents is a problem. Each object is one transaction: it is
    restored whole or not at all, and running twice is safe. An object that no manifest
    lists, or whose bytes are not the listed ones, is refused; the others are restored.
    A dry run counts a row that two objects have twice.

    Counts: objects, restored, skipped. Raises JobError.
    """
    run = _Restoration(
        store=store,
        report=report,
        should_stop=should_stop,
        since=since,
        until=until,
        dry_run=dry_run,
        result=JobResult({"objects": 0, "restored": 0, "skipped": 0}),
    )
    try:
        run.run(name)
    except StoreError as error:
        count = run.result.counts["restored"]
        raise JobError(
            f"{count} rows are restored, the rest failed: {error}"
        ) from error
    return run.result


@dataclass(frozen=True)
class _Restoration:
    store: Store
    report: Report
    should_stop: ShouldStop
    since: datetime
    until: datetime
    dry_run: bool
    result: JobResult

    def run(self, name: str) -> None:
        inventory = take_inventory(self.store)
        chain = read_chain(self.store, inventory)
        if problem := nothing_here(self.store, chain, inventory):
            raise JobError(f"nothing was restored: {problem}")
        entries = [self._listed(chain, name)] if name else self._between(chain)
        try:
            for entry in entries:
                if self.should_stop():
                    raise StopRequested
                self._restore(chain, entry)
        except StopRequested:
            self.result.interrupted = True

    # -- which objects ------------------------------------------------------------

    def _listed(self, chain: Chain, name: str) -> Entry:
        entry = chain.entries.get(name)
        if entry and kind_of(name) == "json":
            return entry
        if entry:
            raise JobError(f"{name} is text for people HINT: {_json_of(chain, name)}")
        if name in self._unlisted():
            raise JobError(f"nothing was restored: {_not_yet_listed(name)}")
        raise JobError(
            f"nothing was restored: no manifest lists {name!r} HINT:"
            " verify_audit_archives --sample=0 names every object"
        )

    def _between(self, chain: Chain) -> list[Entry]:
        """The JSON objects with rows of the period; what is not there is a problem.

        The newest first: its ids take the counter beyond those of all others, so that
        the web service gives none of them away meanwhile.
        """
        entries = [
            entry
            for entry in chain.entries.values()
            if entry.first_timestamp < self.until and entry.last_timestamp >= self.since
        ]
        found = [entry for entry in entries if kind_of(entry.name) == "json"]
        has_json = {_stem(entry.name) for entry in found}
        read = {manifest.name for manifest in chain.manifests}
        self.result.problems += [
            *(
                f"{entry.name} has rows of these days, as text for people only, and"
                " cannot be restored"
                for entry in entries
                if _stem(entry.name) not in has_json
            ),
            *(
                f"{finding.name} is {finding.status}: what only it lists was not"
                " restored HINT: restore it from a copy of the bucket"
                for finding in chain.findings
                if finding.status != STRAY and finding.name not in read
            ),
            *map(_not_yet_listed, self._unlisted()),
        ]
        return sorted(
            found, key=lambda entry: (entry.last_timestamp, entry.name), reverse=True
        )

    def _unlisted(self) -> list[str]:
        """The objects of the period that a killed run could not list any more."""
        records = AuditArchive.objects.filter(
            location=self.store.location,
            state=AuditArchive.State.ARCHIVED,
            manifest=None,
            first_timestamp__lt=self.until,
            last_timestamp__gte=self.since,
        )
        return [name for record in records.order_by("id") for name in record.names]

    # -- one object ---------------------------------------------------------------

    def _restore(self, chain: Chain, entry: Entry) -> None:
        try:
            if entry.name in chain.doubtful:
                raise _RefusedError(
                    f"{entry.name} is listed by a manifest that was changed, and was"
                    " not restored HINT: verify_audit_archives says which"
                )
            restored = self._restore_with_retries(entry)
        except ObjectMissingError:
            self.result.problems.append(
                f"{entry.name} is not in the store any more HINT: restore it from a"
                " copy of the bucket"
            )
        except _RefusedError as error:
            self.result.problems.append(str(error))
        else:
            self._count(restored)

    def _count(self, restored: Restored) -> None:
        counts = self.result.counts
        counts["objects"] += 1
        counts["restored"] += restored.rows - restored.present
        counts["skipped"] += restored.present
        if restored.differing:
            self.result.problems.append(
                f"{restored.differing} rows of {restored.name} are in the table with"
                " other contents and were left as they are, the first has id"
                f" {restored.first_differing_id} HINT: their ids were given to other"
                " events, or somebody changed them; the archive has them as they were"
            )
        self.report(restored)

    def _restore_with_retries(self, entry: Entry, attempts: int = ATTEMPTS) -> Restored:
        try:
            return self._restore_once(entry)
        except IntegrityError as error:
            if not isinstance(error.__cause__, ForeignKeyViolation):
                raise
            if attempts == 1:
                raise JobError(
                    "accounts were deleted while their rows were restored, three times"
                    f" over, and nothing of {entry.name} was restored HINT: run the job"
                    " again later"
                ) from error
        return self._restore_with_retries(entry, attempts - 1)

    def _restore_once(self, entry: Entry) -> Restored:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_MAKE_TABLES)
            self._copy(cursor, entry)
            restored = self._prepare(cursor, entry)
            if not restored.rows:
                return restored
            if not self.dry_run:
                # First, so that the web service does not give these ids away.
                _advance_counter(cursor)
                cursor.execute(_INSERT)
                restored = replace(restored, present=restored.rows - cursor.rowcount)
            return self._compare(cursor, restored)

    def _copy(self, cursor: CursorWrapper, entry: Entry) -> None:
        """Have the object's rows, all of them and proved, in the temporary table."""
        source = Source(entry.name, self.store.read(entry.name), self.should_stop)
        file = _File(source)
        try:
            with connection.wrap_database_errors:  # Django does not know copy_expert
                cursor.copy_expert(_COPY_LINES, file, COPY_BYTES)
        except DatabaseError as error:
            if file.error:  # psycopg2 keeps its text only
                raise file.error from None
            if isinstance(error, DataError):  # not what PostgreSQL wrote
                file.skip_rest()
                _refuse_changed(entry, source.digest())
            raise
        _refuse_changed(entry, source.digest())
        cursor.execute(_READ_ROWS)
        if cursor.rowcount != entry.rows:
            raise _RefusedError(
                f"{entry.name} has {cursor.rowcount} rows instead of {entry.rows}"
            )

    def _prepare(self, cursor: CursorWrapper, entry: Entry) -> Restored:
        """Leave out what was not asked for, and the links to accounts that are gone."""
        cursor.execute(_LEAVE_OTHERS_OUT, {"since": self.since, "until": self.until})
        rows = entry.rows - cursor.rowcount
        cursor.execute(_UNLINK)
        return Restored(entry.name, rows, unlinked=cursor.rowcount)

    def _compare(self, cursor: CursorWrapper, restored: Restored) -> Restored:
        """Look at what was there already, unless it is known that nothing was."""
        if not self.dry_run and not restored.present:
            return restored
        cursor.execute(_COMPARE)
        found, differing, first_id = cursor.fetchone()
        return replace(
            restored,
            present=found if self.dry_run else restored.present,
            differing=differing,
            first_differing_id=first_id,
        )


class _File:
    """What COPY reads from: `pieces` cut to the size that it asks for.

    `error` is what ended the reading.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size_bytes: int) -> bytes:
        try:
            piece = self._rest or next(self._pieces, b"")
        except BaseException as error:
            self.error = error
            raise
        self._rest = piece[size_bytes:]
        return piece[:size_bytes]

    def skip_rest(self) -> None:
        for _ in self._pieces:
            pass


def _refuse_changed(entry: Entry, digest: Digest) -> None:
    if (digest.sha256, digest.size_bytes) != (entry.sha256, entry.size_bytes):
        raise _RefusedError(
            f"{entry.name} is not what was archived, its SHA-256 is {digest.sha256}"
            f" instead of {entry.sha256}; nothing of it was restored HINT: restore it"
            " from a copy of the bucket; verify_audit_archives looks at the rest"
        )


def _advance_counter(cursor: CursorWrapper) -> None:
    """Take the counter of ids beyond those of the temporary table; never backwards."""
    cursor.execute(_COUNTER)
    (counter,) = cursor.fetchone()
    if counter:
        statement = _ADVANCE_COUNTER.format(counter=counter.replace("%", "%%"))
        cursor.execute(statement, {"counter": counter})


def _json_of(chain: Chain, name: str) -> str:
    """What to do instead of restoring the TXT object `name`."""
    for other in chain.entries:
        if _stem(other) == _stem(name) and kind_of(other) == "json":
            return f"restore {other}"
    return "its rows were archived as text only"


def _not_yet_listed(name: str) -> str:
    return (
        f"{name} is in no manifest yet, since its run was killed, and was not restored"
        " HINT: run archive_audit_logs first, which lists it"
    )


def _stem(name: str) -> str:
    """What the JSON and the TXT object of a segment have in common."""
    return name.removesuffix(".gz").rpartition(".")[0]
