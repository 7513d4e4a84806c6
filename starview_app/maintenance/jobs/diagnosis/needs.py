"""Checks the web service's database for what the jobs need: columns, rights, ..."""

from collections.abc import Iterator

from django.apps import apps
from django.db.models import Model

from starview_app.maintenance.jobs.diagnosis.section import Section, Situation, query

_MIGRATIONS = """
    SELECT app, count(*) AS applied, (array_agg(name ORDER BY id DESC))[1] AS last
    FROM django_migrations
    GROUP BY app
    ORDER BY app
"""
_COLUMNS = """
    SELECT relname AS table, attname AS column
    FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid
    WHERE
        pg_class.oid = to_regclass(quote_ident(relname))
        AND attnum > 0
        AND NOT attisdropped
        AND relname = ANY(%(tables)s)
"""
_RIGHTS = """
    SELECT needed.job, needed.table, needed.right
    FROM unnest(%(jobs)s::text[], %(tables)s::text[], %(rights)s::text[])
        AS needed (job, "table", "right")
    WHERE
        to_regclass(needed.table) IS NOT NULL
        AND NOT has_table_privilege(needed.table, needed.right)
"""
_MAY_CREATE = "SELECT has_schema_privilege(current_schema(), 'CREATE') AS may"

_USERS, _MAILS = "cleanup_unverified_users", "cleanup_email_suppressions"
# (job, tables, rights besides SELECT)
_NEEDED = (
    (_USERS, ("auth_user", "account_emailaddress"), ("DELETE", "UPDATE")),
    (_USERS, ("account_emailconfirmation",), ("DELETE", "UPDATE")),
    (_USERS, ("starview_app_userprofile",), ("DELETE", "UPDATE")),
    (_USERS, ("starview_app_userbadge", "starview_app_follow"), ("DELETE", "UPDATE")),
    (_USERS, ("starview_app_auditlog", "starview_email_complaint"), ("UPDATE",)),
    (_MAILS, ("starview_email_bounce",), ("DELETE", "UPDATE")),
    (_MAILS, ("starview_email_suppression",), ("UPDATE",)),
    ("archive_audit_logs", ("starview_app_auditlog",), ("DELETE",)),
    ("restore_audit_logs", ("starview_app_auditlog",), ("INSERT",)),
    ("clearsessions", ("django_session",), ("DELETE", "UPDATE")),
    ("audit_badges", ("starview_app_userbadge",), ("DELETE", "INSERT")),
    ("audit_badges", ("starview_app_badge",), ("UPDATE",)),
    # The first job creates the tables maintenance_*.
    ("the first job", ("django_migrations",), ("DELETE", "INSERT")),
)
_APPS = ("auth", "account", "socialaccount", "sites", "starview_app")


def check_migrations(situation: Situation) -> Section:
    rows = query(_MIGRATIONS)
    return Section("Migrations", rows)


def check_columns(situation: Situation) -> Section:
    """Check that each table and column of this image's models exists."""
    wanted = {
        (model._meta.db_table, field.column)
        for model in _models()
        for field in model._meta.local_concrete_fields
    }
    tables = sorted({table for table, _ in wanted})
    found = {
        (row["table"], row["column"]) for row in query(_COLUMNS, {"tables": tables})
    }
    there = {table for table, _ in found}
    problems = [
        f"the table {table} is missing HINT: is this the web service's database?"
        for table in tables
        if table not in there
    ]
    problems += [
        f"the column {table}.{column} is missing HINT: the image is newer, or older,"
        " than the web service: deploy both from one commit"
        for table, column in sorted(wanted - found)
        if table in there
    ]
    row = {
        "tables": f"{len(there)} of {len(tables)}",
        "columns": f"{len(wanted & found)} of {len(wanted)}",
    }
    return Section("Tables and columns that the jobs use", [row], problems)


def check_rights(situation: Situation) -> Section:
    needed = [
        (job, table, right)
        for job, tables, rights in _NEEDED
        for table in tables
        for right in ("SELECT", *rights)
    ]
    jobs, tables, rights = (list(part) for part in zip(*needed, strict=True))
    missing = query(_RIGHTS, {"jobs": jobs, "tables": tables, "rights": rights})
    problems = [
        f"{row['job']} may not {row['right']} on {row['table']} HINT: connect as the"
        f" web service's user, or GRANT {row['right']} ON {row['table']} TO this one"
        for row in missing
    ]
    (may,) = query(_MAY_CREATE)
    if not may["may"]:
        problems.append(
            "this user may not make the tables maintenance_* HINT: GRANT CREATE ON"
            " SCHEMA public, or connect as the web service's user"
        )
    row = {"rights": f"{len(needed) - len(missing)} of {len(needed)}"}
    return Section("Rights that the jobs need", [row], problems)


def _models() -> Iterator[type[Model]]:
    for label in _APPS:
        yield from apps.get_app_config(label).get_models()
