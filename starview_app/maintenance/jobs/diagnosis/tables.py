"""Checks the tables: sizes, dead rows, and indexes that are unused or missing."""

from starview_app.maintenance.jobs.diagnosis.section import Section, Situation, query

MOST_ROWS = 10  # in each list

_LARGEST = """
    SELECT
        relname AS table,
        pg_size_pretty(pg_total_relation_size(relid)) AS size,
        n_live_tup AS rows,
        n_dead_tup AS dead_rows,
        date_trunc('minute', greatest(last_vacuum, last_autovacuum)) AS last_vacuum
    FROM pg_stat_user_tables
    ORDER BY pg_total_relation_size(relid) DESC
    LIMIT %(rows)s
"""
_UNTIDY = """
    SELECT relname AS table, n_dead_tup AS dead_rows
    FROM pg_stat_user_tables
    WHERE n_dead_tup > %(dead_rows)s AND n_dead_tup > n_live_tup / 4
    ORDER BY n_dead_tup DESC
"""
_UNUSED = """
    SELECT
        use.relname AS table,
        use.indexrelname AS index,
        pg_size_pretty(pg_relation_size(use.indexrelid)) AS size
    FROM pg_stat_user_indexes AS use
    JOIN pg_index AS index ON index.indexrelid = use.indexrelid
    WHERE
        use.idx_scan = 0
        AND NOT index.indisunique
        AND pg_relation_size(use.indexrelid) > 1000000
    ORDER BY pg_relation_size(use.indexrelid) DESC
    LIMIT %(rows)s
"""
# Foreign keys without an index: a delete in the other table reads this one completely.
_MISSING = """
    SELECT
        key.conrelid::regclass::text AS table,
        attribute.attname AS column,
        key.confrelid::regclass::text AS refers_to,
        class.reltuples::bigint AS rows
    FROM pg_constraint AS key
    JOIN pg_class AS class ON class.oid = key.conrelid
    JOIN pg_attribute AS attribute
        ON attribute.attrelid = key.conrelid AND attribute.attnum = key.conkey[1]
    WHERE
        key.contype = 'f'
        AND class.reltuples > 10000
        AND NOT EXISTS (
            SELECT FROM pg_index AS index
            WHERE
                index.indrelid = key.conrelid
                AND index.indkey[0] = key.conkey[1]
                AND index.indisvalid
        )
    ORDER BY class.reltuples DESC
    LIMIT %(rows)s
"""


def check_largest(situation: Situation) -> Section:
    rows = query(_LARGEST, {"rows": MOST_ROWS})
    problems = [
        f"{row['table']} has {row['dead_rows']} dead rows HINT: VACUUM (ANALYZE)"
        f" {row['table']}, and look for the long transaction that keeps them"
        for row in query(_UNTIDY, {"dead_rows": situation.dead_rows})
    ]
    return Section("Largest tables", rows, problems)


def check_unused_indexes(situation: Situation) -> Section:
    rows = query(_UNUSED, {"rows": MOST_ROWS})
    return Section("Indexes that nothing has used since the last reset", rows)


def check_missing_indexes(situation: Situation) -> Section:
    rows = query(_MISSING, {"rows": MOST_ROWS})
    return Section("Foreign keys without an index", rows)
