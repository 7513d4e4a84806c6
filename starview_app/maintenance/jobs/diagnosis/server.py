"""Checks the server: connection, limits, transactions and clock."""

from django.db import connection

from starview.database import server_ahead_seconds
from starview_app.maintenance.jobs.diagnosis.section import Section, Situation, query

MOST_CLOCK_SECONDS = 5.0
MOST_CONNECTIONS = 0.9  # the share of max_connections
OLDEST_TRANSACTION_ID = 1_500_000_000  # PostgreSQL refuses to write at 2,000,000,000

_CONNECTION = """
    SELECT
        current_database() AS database,
        current_user AS "user",
        coalesce(ssl.version, 'no TLS') AS tls,
        pg_is_in_recovery() AS is_copy,
        current_setting('server_version') AS version,
        current_setting('TimeZone') AS time_zone
    FROM (SELECT pg_backend_pid() AS pid) AS own
    LEFT JOIN pg_stat_ssl AS ssl ON ssl.pid = own.pid AND ssl.ssl
"""
_LIMITS = """
    SELECT
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
            AS connections,
        current_setting('max_connections')::integer AS allowed,
        pg_size_pretty(pg_database_size(current_database())) AS database_size,
        (
            SELECT age(datfrozenxid)
            FROM pg_database
            WHERE datname = current_database()
        ) AS oldest_transaction_id
"""
_TRANSACTIONS = """
    SELECT
        pid,
        usename AS "user",
        application_name AS program,
        state,
        date_trunc('second', clock_timestamp() - xact_start) AS lasts,
        cardinality(pg_blocking_pids(pid)) > 0 AS is_blocked,
        ARRAY(SELECT DISTINCT unnest(pg_blocking_pids(pid)) ORDER BY 1) AS blocked_by,
        CASE WHEN wait_event_type = 'Lock'
            THEN date_trunc('second', clock_timestamp() - query_start)
        END AS waits
    FROM pg_stat_activity
    WHERE
        datname = current_database()
        AND pid <> pg_backend_pid()
        AND (
            -- Without both it holds up no vacuum: so a run keeps its lock.
            xact_start < clock_timestamp() - %(long)s
            AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
            OR cardinality(pg_blocking_pids(pid)) > 0
        )
    ORDER BY xact_start
"""


def check_connection(situation: Situation) -> Section:
    (found,) = query(_CONNECTION)
    raw = connection.connection
    row = {
        "host": situation.host or "a socket of this machine",
        **found,
        "pooler": "yes, by transaction" if raw.is_pooled else "no",
    }
    problems = []
    if found["is_copy"]:
        problems.append("this is a read-only copy HINT: name the primary")
    return Section("Connection", [row], problems)


def check_limits(situation: Situation) -> Section:
    (row,) = query(_LIMITS)
    problems = []
    if row["connections"] > MOST_CONNECTIONS * row["allowed"]:
        problems.append(
            f"{row['connections']} of {row['allowed']} connections are in use HINT:"
            " close idle ones, or take a larger plan"
        )
    if row["oldest_transaction_id"] > OLDEST_TRANSACTION_ID:
        problems.append(
            f"the oldest transaction id is {row['oldest_transaction_id']} old, and at"
            " 2,000,000,000 the server stops HINT: VACUUM (FREEZE) the largest tables"
        )
    return Section("Limits", [row], problems)


def check_transactions(situation: Situation) -> Section:
    rows = query(_TRANSACTIONS, {"long": situation.long_transaction})
    problems = []
    for row in rows:
        who = f"session {row['pid']} ({row['program'] or row['user']})"
        waits, lasts = row["waits"], row["lasts"]
        if waits is not None and waits >= situation.too_long_wait:
            problems.append(f"{who} has waited {waits} {_ending(row['blocked_by'])}")
        elif lasts is not None and lasts >= situation.too_long_transaction:
            problems.append(
                f"the transaction of {who} lasts {lasts}, and no vacuum removes"
                " what it may still see HINT: end it with SELECT"
                f" pg_terminate_backend({row['pid']})"
            )
        row["blocked_by"] = _numbers(row["blocked_by"])
    return Section("Long transactions and locks", rows, problems)


def _ending(blockers: list[int]) -> str:
    """Return for whom a session waits, and how that is ended."""
    pids = [pid for pid in blockers if pid]
    if not pids:  # it has no session, and PostgreSQL gives 0
        return (
            "for a prepared transaction HINT: find it in pg_prepared_xacts, and end it"
            " with ROLLBACK PREPARED"
        )
    ends = ", ".join(f"pg_terminate_backend({pid})" for pid in pids)
    return f"for session {_numbers(pids)} HINT: end what blocks it with SELECT {ends}"


def _numbers(pids: list[int]) -> str:
    return ", ".join(map(str, pids))


def check_clock(situation: Situation) -> Section:
    with connection.cursor() as cursor:
        seconds = server_ahead_seconds(cursor)
    shown = {"server_ahead_seconds": round(seconds, 3)}
    problems = []
    if abs(seconds) > MOST_CLOCK_SECONDS:
        problems.append(
            f"the clock of the server and that of this container differ by"
            f" {abs(seconds):.0f} s, so jobs run at other times than they say"
        )
    return Section("Clock", [shown], problems)
