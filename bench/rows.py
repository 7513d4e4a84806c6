"""Audit rows like the web service's: eleven months, some 480 bytes of JSON each."""

# Members that are verified: the clean-up of accounts has nothing to do.
USERS = """
    WITH member AS (
        INSERT INTO auth_user (
            username, email, password, first_name, last_name,
            is_staff, is_superuser, is_active, date_joined
        )
        SELECT
            'stargazer_' || n, 'stargazer_' || n || '@example.com', '!', '', '',
            FALSE, FALSE, TRUE, now() - INTERVAL '2 years'
        FROM generate_series(1, 2000) AS n
        RETURNING id, email
    )
    INSERT INTO account_emailaddress (user_id, email, verified, "primary")
    SELECT id, email, TRUE, TRUE FROM member
"""

# Eleven whole months of UTC, which end a month before this one began: all are due. Of
# each row `dice` are different, and the same in every run; the log comes in order.
ROWS = """
    INSERT INTO starview_app_auditlog (
        event_type, timestamp, success, message,
        user_id, username, ip_address, user_agent, metadata
    )
    SELECT
        (ARRAY[
            'login_success', 'login_failed', 'login_success', 'logout',
            'login_success', 'password_reset_requested', 'location_verified',
            'registration_success', 'permission_denied', 'access_forbidden',
            'content_moderated', 'login_locked', 'password_changed'
        ])[1 + dice % 13],
        edge.first + (edge.last - edge.first) * (n::float8 / {rows}),
        dice % 13 NOT IN (1, 8, 9, 11),
        'Request to ' || path.name || ' answered in ' || dice % 900 || ' ms',
        CASE WHEN dice % 7 > 0 THEN person.id END,
        CASE WHEN dice % 7 > 0 THEN person.username ELSE '' END,
        CASE
            WHEN dice % 11 = 0 THEN NULL
            WHEN dice % 3 = 0
            THEN ('2001:db8:' || to_hex(dice % 65536) || '::' || to_hex(n % 65536))
            ELSE '198.51.' || dice % 256 || '.' || n % 256
        END::inet,
        agent.name,
        jsonb_build_object(
            'path', path.name,
            'method', (ARRAY['GET', 'POST', 'POST', 'DELETE'])[1 + dice % 4],
            'status', (ARRAY[200, 401, 204, 302, 403])[1 + dice % 5],
            'session', left(md5(dice::text), 10),
            'request_id', md5(n::text)
        )
    FROM
        generate_series(0, {rows} - 1) AS n,
        LATERAL (SELECT hashint8(n) & 2147483647 AS dice) AS dice,
        LATERAL (
            SELECT (ARRAY[
                'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36'
                || ' (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36',
                'Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X)'
                || ' AppleWebKit/605.1.15 (KHTML, like Gecko) Safari/604.1',
                'Mozilla/5.0 (X11; Linux x86_64; rv:145.0)'
                || ' Gecko/20100101 Firefox/145.0',
                'python-requests/2.32.3'
            ])[1 + dice / 7 % 4] AS name
        ) AS agent,
        LATERAL (
            SELECT (ARRAY[
                '/accounts/login/', '/api/locations/' || dice % 5000 || '/',
                '/accounts/password/reset/', '/api/reviews/' || n % 90000 || '/votes/'
            ])[1 + dice / 3 % 4] AS name
        ) AS path,
        LATERAL (
            SELECT
                (date_trunc('month', now(), 'UTC') - INTERVAL '13 months') AS first,
                (date_trunc('month', now(), 'UTC') - INTERVAL '2 months') AS last
        ) AS edge,
        auth_user AS person
    WHERE person.id = 1 + dice % 2000
    ORDER BY n
"""

# Filling a table that has its indexes takes three times as long.
DROP_INDEXES = """
    SELECT 'DROP INDEX ' || string_agg(indexrelid::regclass::text, ', ')
    FROM pg_index
    WHERE indrelid = 'starview_app_auditlog'::regclass AND NOT indisprimary
"""
MAKE_INDEXES = """
    SELECT string_agg(pg_get_indexdef(indexrelid), '; ')
    FROM pg_index
    WHERE indrelid = 'starview_app_auditlog'::regclass AND NOT indisprimary
"""
