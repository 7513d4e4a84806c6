-- The runs of the last weeks, as the runner records them: a month of the daily job with one
-- bad night, eleven weeks of the weekly ones. The newest slot of each job has no run yet.

CREATE TEMP TABLE ran ON COMMIT DROP AS
WITH due (job, command, every, newest, runs) AS (
    SELECT job, command, every, newest - CASE WHEN newest > moment THEN every ELSE '0' END, runs
    FROM (
        SELECT
            pg_temp.ago(0) AS moment,
            date_trunc('day', pg_temp.ago(0), 'UTC') AS day,
            date_trunc('week', pg_temp.ago(0), 'UTC') + interval '6 days' AS sunday
    ) AS today
    CROSS JOIN LATERAL (
        VALUES
            (
                'starview-cleanup-unverified-users', 'cleanup_unverified_users --days=7',
                interval '1 day', day + interval '2 hours', 29
            ),
            (
                'starview-cleanup-email-suppressions',
                'cleanup_email_suppressions --email-report admin@example.com',
                interval '7 days', sunday + interval '3 hours', 11
            ),
            (
                'starview-clear-sessions', 'clearsessions',
                interval '7 days', sunday + interval '5 hours', 11
            )
    ) AS line (job, command, every, newest, runs)
)
SELECT
    job, command, slot, back, attempt,
    CASE WHEN is_bad_night AND attempt = 1 THEN 'failed' ELSE 'succeeded' END AS outcome,
    slot + CASE WHEN attempt = 1 THEN interval '2 seconds' ELSE interval '11 minutes' END
        AS started_at,
    round(0.4 + pg_temp.fraction(7 * back), 2)::float AS seconds
FROM due
CROSS JOIN LATERAL generate_series(1, runs) AS back
CROSS JOIN LATERAL (
    SELECT
        newest - back * every AS slot,
        every = '1 day' AND back = 12 AS is_bad_night
) AS night
CROSS JOIN LATERAL generate_series(1, CASE WHEN is_bad_night THEN 2 ELSE 1 END) AS attempt;

INSERT INTO maintenance_jobrun (
    run_id, job, slot, attempt, trigger, command, host, pid, started_at, finished_at,
    seen_at, outcome, exit_code, seconds, counts, output, error
)
SELECT
    md5(job || slot || attempt)::uuid,
    job,
    slot,
    attempt,
    CASE WHEN attempt = 1 THEN 'schedule' ELSE 'catch-up' END,
    'python manage.py ' || command,
    'before-the-demo',
    7,
    started_at,
    started_at + seconds * interval '1 second',
    started_at,
    outcome,
    CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END,
    seconds,
    CASE
        WHEN outcome = 'failed' THEN '{}'
        WHEN job LIKE '%users' THEN
            jsonb_build_object('found', back % 4, 'deleted', back % 4, 'kept', 20)
        WHEN job LIKE '%sessions' THEN
            jsonb_build_object('live', 31 + back % 7, 'endless', 0, 'expired', 0)
        ELSE
            jsonb_build_object(
                'deactivated', back % 3,
                'deleted', 1 + back % 2,
                'ses_attempts', 4100 + 37 * (back * 5 % 11),
                'ses_bounces', 55 + 7 * (back * 3 % 8),
                'ses_complaints', back * 2 % 3
            )
    END,
    '',
    CASE
        WHEN outcome = 'failed' THEN
            'the database does not answer: connection refused HINT: see whether the'
            || ' database runs'
        ELSE ''
    END
FROM ran
ORDER BY started_at;
