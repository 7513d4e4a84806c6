-- Bounces, complaints and suppressions of one year, as the web service's webhook leaves
-- them. demo/data.py runs it after data_accounts.sql, whose table `person` it uses.

-- A row is a bounce, a complaint, or neither; with a `reason` it is a suppression, too.
-- Every third is of somebody who has an account.
CREATE TEMP TABLE event ON COMMIT DROP AS
WITH bounces (kind, subtype, count, reason, email, days_ago) AS (
    VALUES
        -- Hard bounces: never touched, however old.
        ('hard', 'noemail', 1, 'hard_bounce', '', '{0.6,2,5,9,13,27,48,95,180,290,340}'),
        ('hard', 'suppressed', 1, 'hard_bounce', '', '{3,66,210}'),
        ('hard', 'general', 1, NULL, '', '{130}'), -- lifted by hand
        -- Three soft bounces and more suppress: for 30 days.
        ('soft', 'mailboxfull', 3, 'soft_bounce', '', '{1,8,19,29}'),
        ('soft', 'mailboxfull', 4, 'soft_bounce', '', '{31.5,36,44,59,77}'),
        ('soft', 'contentrejected', 5, 'soft_bounce', '', '{98,140,260}'),
        -- The webhook rewrites the type of a record, not the reason of its suppression.
        ('hard', 'noemail', 4, 'soft_bounce', '', '{41}'),
        -- Bounces that suppress nothing: forgotten after 90 days.
        ('soft', 'mailboxfull', 2, NULL, '', '{4,11,38,82,93,121}'),
        ('soft', 'messagetoolarge', 1, NULL, '', '{25,150,233}'),
        ('transient', 'general', 1, NULL, '', '{0.2,3,6,12,40,89}'),
        ('transient', 'general', 2, NULL, '', '{91,104,199,330}'),
        ('transient', 'undetermined', 1, NULL, '', '{10}'),
        -- Old soft bounces, but suppressed again below, under other capitals.
        ('soft', 'mailboxfull', 3, 'soft_bounce', 'kari.nilsen@example.org', '{52}'),
        ('soft', 'mailboxfull', 3, 'soft_bounce', 'a.lindqvist@example.net', '{47}')
),
others (kind, reason, email, days, is_active, reviewed, notes) AS (
    VALUES
        -- Complaints.
        ('abuse', 'complaint', '', 1.5, TRUE, FALSE, ''),
        ('abuse', 'complaint', '', 10, TRUE, FALSE, ''),
        ('abuse', 'complaint', '', 62, TRUE, TRUE, ''),
        ('abuse', 'complaint', '', 200, TRUE, TRUE, ''),
        ('fraud', 'complaint', '', 33, TRUE, TRUE, ''),
        ('auth-failure', 'complaint', '', 71, TRUE, TRUE, ''),
        ('other', 'complaint', '', 5, TRUE, FALSE, ''),
        ('virus', 'complaint', '', 300, TRUE, TRUE, ''),
        ('not-spam', 'complaint', '', 120, FALSE, TRUE, ''),
        ('abuse', NULL, 'Kari.Nilsen@Example.ORG', 50, TRUE, TRUE, ''),
        -- Suppressions without an event.
        (NULL, 'manual', 'A.Lindqvist@example.net', 46, TRUE, NULL, 'Moved'),
        (NULL, 'manual', '', 400, TRUE, NULL, 'Asked by phone not to be written to'),
        (NULL, 'manual', '', 80, FALSE, NULL, 'Lifted after a call'),
        (NULL, 'unsubscribe', '', 12, TRUE, NULL, ''),
        (NULL, 'unsubscribe', '', 55, TRUE, NULL, ''),
        (NULL, 'unsubscribe', '', 350, TRUE, NULL, ''),
        (NULL, 'soft_bounce', '', 64, TRUE, NULL, 'From the former mail provider'),
        (NULL, 'soft_bounce', '', 9, TRUE, NULL, 'From the former mail provider'),
        (NULL, 'soft_bounce', '', 250, FALSE, NULL, 'Expired')
),
listed AS (
    SELECT
        kind, subtype, count, reason, email AS given, days, TRUE AS is_active,
        NULL AS reviewed, '' AS notes
    FROM bounces, unnest(days_ago::numeric[]) AS days
    UNION ALL
    SELECT kind, NULL, NULL, reason, email, days, is_active, reviewed, notes
    FROM others
),
numbered AS (
    SELECT *, row_number() OVER () - 1 AS number FROM listed
),
known AS (
    -- Four accounts that never confirmed their address, then members.
    SELECT id, email, row_number() OVER (ORDER BY kind = 'member', joined) - 1 AS place
    FROM person
    WHERE kind = 'member' OR number BETWEEN 150 AND 153
)
SELECT
    numbered.*,
    pg_temp.ago(days) AS moment,
    known.id AS user_id,
    coalesce(
        nullif(given, ''),
        known.email,
        format('gone.visitor%s@example.', lpad(number::text, 2, '0'))
        || (ARRAY['net', 'org', 'com'])[1 + number % 7 % 3]
    ) AS email
FROM numbered
LEFT JOIN known ON given = '' AND number = 3 * place;

INSERT INTO starview_email_bounce (
    email, user_id, bounce_type, bounce_subtype, bounce_count, first_bounce_date,
    last_bounce_date, sns_message_id, diagnostic_code, raw_notification, suppressed
)
SELECT
    email,
    user_id,
    kind,
    subtype,
    count,
    moment - (count - 1) * interval '2.5 days',
    moment,
    md5('bounce' || email)::uuid,
    CASE subtype
        WHEN 'noemail' THEN 'smtp; 550 5.1.1 Recipient address rejected: User unknown'
        WHEN 'suppressed' THEN 'Amazon SES has suppressed sending to this address'
        WHEN 'mailboxfull' THEN 'smtp; 452 4.2.2 The email account is over quota'
        WHEN 'messagetoolarge' THEN 'smtp; 552 5.3.4 Message size exceeds fixed limit'
        WHEN 'contentrejected' THEN 'smtp; 554 5.7.1 Message rejected due to content'
        WHEN 'general' THEN 'smtp; 421 4.4.2 mx.example.net Error: timeout exceeded'
        ELSE ''
    END,
    jsonb_build_object('notificationType', 'Bounce', 'destination', email),
    reason IS NOT NULL
FROM event
WHERE subtype IS NOT NULL
ORDER BY number;

INSERT INTO starview_email_complaint (
    email, user_id, complaint_type, user_agent, complaint_date, sns_message_id,
    feedback_id, raw_notification, suppressed, reviewed
)
SELECT
    email,
    user_id,
    kind,
    'ExampleMail Feedback Loop/2.1',
    moment,
    md5('complaint' || email)::uuid,
    md5('feedback' || email)::uuid || '-000000',
    jsonb_build_object('notificationType', 'Complaint', 'destination', email),
    is_active,
    reviewed
FROM event
WHERE kind IS NOT NULL AND subtype IS NULL
ORDER BY number;

INSERT INTO starview_email_suppression (
    email, reason, added_date, user_id, bounce_id, complaint_id, is_active, notes
)
SELECT email, reason, moment, event.user_id, bounce.id, complaint.id, is_active, notes
FROM event
LEFT JOIN starview_email_bounce AS bounce USING (email)
LEFT JOIN starview_email_complaint AS complaint USING (email)
WHERE reason IS NOT NULL
ORDER BY number;
