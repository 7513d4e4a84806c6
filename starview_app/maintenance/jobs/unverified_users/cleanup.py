"""Delete accounts that never verified an address, and no others.

The rule runs once to list the accounts, and again at each delete, on locked rows, so
that changes in between are taken into account.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.jobs import references
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.jobs.unverified_users.rule import ACCOUNT_COLUMNS, Rule

BATCH_ACCOUNTS = 2000  # one transaction each: short locks, so the site stays quick
BATCH_CONFIRMATIONS = 5000
LOCK_TIMEOUT_MS = 900  # below deadlock_timeout, so the job gives way: decisions/0007
MOST_NAMES = 20


@dataclass(frozen=True)
class Account:
    id: int
    username: str
    email: str | None  # the account's own, or else its primary address
    joined: datetime


@dataclass(frozen=True)
class Found:
    """The first event: the number of due accounts, all of which follow as Listed."""

    count: int
    cutoff: datetime


@dataclass(frozen=True)
class Listed:
    """The next due accounts, newest first, up to BATCH_ACCOUNTS."""

    accounts: list[Account]


@dataclass(frozen=True)
class Deleting:
    """Deleting begins. Not sent in a dry run, or if nothing is due."""


@dataclass(frozen=True)
class Deleted:
    """The accounts of one batch, which is committed."""

    accounts: list[Account]


@dataclass(frozen=True)
class ChangedMeanwhile:
    """An account that was listed was no longer due when it was to be deleted.

    `name` is empty if it is not known.
    """

    name: str


@dataclass(frozen=True)
class Failed:
    name: str
    reason: str


@dataclass(frozen=True)
class Kept:
    """The last event, if any old and unverified accounts are kept.

    It has their numbers by reason, the most frequent first, and up to MOST_NAMES of the
    accounts with their reasons, newest first.
    """

    by_reason: dict[str, int]
    named: list[tuple[Account, str]]


Event = Found | Listed | Deleting | Deleted | ChangedMeanwhile | Failed | Kept
Report = Callable[[Event], None]

# The children first, in the order in which Django deletes. A request that has changed
# an address locks the account only at its commit, when deferred foreign keys are
# checked.
_OWN = (*references.BOOKKEEPING, *references.MADE_BY_OTHERS)
_LOCKS = tuple(
    f"SELECT id FROM {table} WHERE {column} = ANY(%(ids)s) ORDER BY id FOR UPDATE"
    for table, column in (*_OWN, (references.USER_TABLE, "id"))
)

_DELETE_CONFIRMATIONS_OF_ACCOUNTS = """
    DELETE FROM account_emailconfirmation AS confirmation
    USING account_emailaddress AS address
    WHERE
        address.id = confirmation.email_address_id
        AND address.user_id = ANY(%(ids)s)
"""

# Confirmations that are expired, and are not the only sign that a still unverified
# account has added an address after the cut-off: that sign protects the account.
_EXPIRED_CONFIRMATIONS = """
    FROM account_emailconfirmation AS confirmation
    JOIN account_emailaddress AS address ON address.id = confirmation.email_address_id
    JOIN auth_user AS account ON account.id = address.user_id
    WHERE
        greatest(confirmation.created, confirmation.sent) < %(link_cutoff)s
        AND NOT (
            greatest(confirmation.created, confirmation.sent) >= %(cutoff)s
            -- that of the sign-up itself says no more than date_joined
            AND greatest(confirmation.created, confirmation.sent)
                > account.date_joined + interval '1 hour'
            AND NOT EXISTS (
                SELECT FROM account_emailaddress AS other
                WHERE other.user_id = account.id AND other.verified
            )
        )
"""


def cleanup_unverified_users(
    *,
    now: datetime,
    days: int,
    link_days: int,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
    batch_accounts: int = BATCH_ACCOUNTS,
) -> JobResult:
    """Delete accounts that joined more than `days` days before `now` without verifying.

    An account that joined exactly `days` days ago is kept. Confirmation links are valid
    for `link_days` days; expired confirmations are deleted too.

    Safe to run twice and safe to kill: each batch of accounts commits by itself, with
    everything that belongs to them. If the database refuses to delete an account or a
    confirmation, that is a problem, and the others of its batch are deleted.
    Counts: found, deleted, kept, confirmations. `kept` are old and unverified accounts
    that are not deleted; each reason also has its own count, such as kept_a_review.
    """
    limits = {
        "cutoff": now - timedelta(days=days),
        "link_cutoff": now - timedelta(days=link_days),
    }
    job = _Cleanup(limits, report, should_stop)
    due = job.list_due()
    if dry_run:
        job.count_expired_confirmations(due)
    else:
        if due:
            report(Deleting())
        for start in range(0, len(due), batch_accounts):
            job.delete(due[start : start + batch_accounts].tolist())
        job.remove_expired_confirmations()
    job.report_kept()
    return job.result


class _Cleanup:
    """One run, with the rule as read from the catalog at its begin."""

    def __init__(
        self, limits: dict[str, datetime], report: Report, should_stop: ShouldStop
    ) -> None:
        self._limits = limits
        self._report = report
        self._should_stop = should_stop
        self._rule = Rule()
        self._kept: Counter[str] = Counter()
        self._named: list[tuple[Account, str]] = []
        self._expired_sql = (
            f"{_EXPIRED_CONFIRMATIONS} AND "
            + references.unreferenced_sql(
                references.EMAIL_CONFIRMATION_TABLE, "confirmation"
            )
        )
        self.result = JobResult(
            {"found": 0, "deleted": 0, "kept": 0, "confirmations": 0}
        )

    def stopped(self) -> bool:
        """Whether the run must stop here, with work left to do."""
        self.result.interrupted = self.result.interrupted or self._should_stop()
        return self.result.interrupted

    def list_due(self) -> "array[int]":
        """Report the due accounts, newest first, and return their ids.

        Only the ids are kept in memory, 8 bytes each: a first run may find a million
        accounts.
        """
        ids = array("q")
        with transaction.atomic(), connection.cursor() as cursor:
            # One snapshot, so that all reported numbers agree.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for accounts, count in self._stream_due():
                if not ids:
                    self._report(Found(count, self._limits["cutoff"]))
                ids.extend(account.id for account in accounts)
                self._report(Listed(accounts))
            if not ids:
                self._report(Found(0, self._limits["cutoff"]))
            self._find_kept(cursor)
        self.result.counts["found"] = len(ids)
        return ids

    def delete(self, ids: Sequence[int]) -> None:
        """Delete the accounts of `ids` that are still due, in one transaction.

        If the database refuses, the batch is halved until the refused account is alone;
        that account becomes a problem.
        """
        if self.stopped():
            return
        try:
            with transaction.atomic():
                deleted = self._delete_due(ids)
        except DatabaseError as error:
            self._raise_unless_refused()
            # Raises an error that concerns every account: missing rights, for example.
            with transaction.atomic():
                self._delete_due([])
            self._delete_apart(ids, error)
        else:
            self._note_deleted(ids, deleted)

    def count_expired_confirmations(self, due: Sequence[int]) -> None:
        """Count without those of `due`, which are deleted with their accounts."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT count(*) {self._expired_sql} AND account.id <> ALL(%(due)s)",
                {**self._limits, "due": list(due)},
            )
            (self.result.counts["confirmations"],) = cursor.fetchone()

    def remove_expired_confirmations(self) -> None:
        """Delete batch by batch, by id; one that cannot be deleted is passed over."""
        last = 0
        while not self.stopped():
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT confirmation.id {self._expired_sql}"
                    " AND confirmation.id > %(last)s"
                    f" ORDER BY confirmation.id LIMIT {BATCH_CONFIRMATIONS}",
                    {**self._limits, "last": last},
                )
                ids = [number for (number,) in cursor.fetchall()]
            if not ids:
                return
            self._remove_confirmations(ids)
            last = ids[-1]

    def report_kept(self) -> None:
        counts = self.result.counts
        counts["kept"] = self._kept.total()
        for reason, count in self._kept.items():
            counts["kept_" + re.sub(r"\W+", "_", reason).lower()] = count
        if self._kept:
            self._report(Kept(dict(self._kept.most_common()), self._named))

    # -- internal helpers ---------------------------------------------------------

    def _find_kept(self, cursor: CursorWrapper) -> None:
        """Find the old and unverified accounts that are kept, and the reasons."""
        cursor.execute(self._rule.kept_sql(), self._limits)
        for *account, reason, count in cursor.fetchall():
            self._kept[reason] = count
            if len(self._named) < MOST_NAMES:
                self._named.append((Account(*account), reason))

    def _stream_due(self) -> Iterator[tuple[list[Account], int]]:
        """Yield the due accounts in parts, each with the number of all."""
        raw: Any = connection.connection
        with connection.wrap_database_errors, raw.cursor(name="due_accounts") as cursor:
            cursor.execute(
                f"SELECT {ACCOUNT_COLUMNS}, count(*) OVER ()"
                f" FROM auth_user AS account WHERE {self._rule.is_due}"
                " ORDER BY account.date_joined DESC, account.id DESC",
                self._limits,
            )
            while rows := cursor.fetchmany(BATCH_ACCOUNTS):
                yield [Account(*row[:-1]) for row in rows], rows[0][-1]

    def _delete_due(self, ids: Sequence[int]) -> list[Account]:
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            for statement in _LOCKS:
                cursor.execute(statement, {"ids": list(ids)})
            # A separate statement, which sees what the former lock holders committed.
            cursor.execute(
                f"SELECT {ACCOUNT_COLUMNS} FROM auth_user AS account"
                f" WHERE account.id = ANY(%(ids)s) AND {self._rule.is_due}",
                {**self._limits, "ids": list(ids)},
            )
            accounts = [Account(*row) for row in cursor.fetchall()]
            _delete_accounts(cursor, [account.id for account in accounts])
        return accounts

    def _raise_unless_refused(self) -> None:
        """Raise an error again unless it concerns rows: a lost session, for example."""
        gone = connection.connection is None or connection.connection.closed
        if gone or self._should_stop():
            raise

    def _remove_confirmations(self, ids: Sequence[int]) -> None:
        """Delete in one transaction; a refused confirmation is found by halving."""
        try:
            self.result.counts["confirmations"] += self._delete_expired(ids)
        except DatabaseError as error:
            self._raise_unless_refused()
            self._delete_expired([])  # raises an error that concerns every confirmation
            if len(ids) == 1:
                self.result.problems.append(
                    f"confirmation {ids[0]} was not removed: {message_of(error)}"
                )
                return
            middle = len(ids) // 2
            self._remove_confirmations(ids[:middle])
            self._remove_confirmations(ids[middle:])

    def _delete_expired(self, ids: Sequence[int]) -> int:
        """Delete those of `ids` that are still expired, except locked ones."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM account_emailconfirmation WHERE id IN"
                f" (SELECT confirmation.id {self._expired_sql}"
                " AND confirmation.id = ANY(%(ids)s)"
                " FOR UPDATE OF confirmation SKIP LOCKED)",
                {**self._limits, "ids": list(ids)},
            )
            return int(cursor.rowcount)

    def _delete_apart(self, ids: Sequence[int], error: DatabaseError) -> None:
        if len(ids) > 1:
            middle = len(ids) // 2
            self.delete(ids[:middle])
            self.delete(ids[middle:])
            return
        reason = message_of(error)
        self.result.problems.append(f"account {ids[0]} was not deleted: {reason}")
        self._report(Failed(_name(ids[0]), reason))

    def _note_deleted(self, ids: Sequence[int], deleted: list[Account]) -> None:
        by_id = {account.id: account for account in deleted}
        if deleted:
            in_order = [by_id[number] for number in ids if number in by_id]
            self._report(Deleted(in_order))
        for number in ids:
            if number not in by_id:
                self._kept["changed meanwhile"] += 1
                self._report(ChangedMeanwhile(_name(number)))
        self.result.counts["deleted"] += len(deleted)


def _name(account_id: int) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT username FROM auth_user WHERE id = %(id)s", {"id": account_id}
        )
        row = cursor.fetchone()
    return str(row[0]) if row else f"account {account_id}"


def _delete_accounts(cursor: Any, ids: list[int]) -> None:
    """Delete the accounts `ids`, children first, and check the foreign keys."""
    parameters = {"ids": ids}
    cursor.execute(_DELETE_CONFIRMATIONS_OF_ACCOUNTS, parameters)
    for table, column in _OWN:
        cursor.execute(f"DELETE FROM {table} WHERE {column} = ANY(%(ids)s)", parameters)
    for table, column in references.HISTORY:
        cursor.execute(
            f"UPDATE {table} SET {column} = NULL WHERE {column} = ANY(%(ids)s)",
            parameters,
        )
    cursor.execute("DELETE FROM auth_user WHERE id = ANY(%(ids)s)", parameters)
    if cursor.rowcount != len(ids):
        raise DatabaseError("the database kept it without an error (a trigger or rule)")
    # Django's foreign keys are deferred to the commit. Checked now, an error still
    # belongs to this batch.
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
