-- The accounts, of every kind that the clean-up of unverified ones must tell apart, and
-- what members contributed. demo/data.py runs this file after it has created two functions:
--   pg_temp.ago(days)       that many days before the demo's present
--   pg_temp.fraction(n)     a fraction from 0 to 1, different for each number

-- All people, with a number each. They joined `days` days ago, and last logged in
-- `seen_days` days ago. Names are made from the number unless one is given.
CREATE TEMP TABLE person ON COMMIT DROP AS
WITH listed (number, kind, days, seen_days, username, email) AS (
    SELECT
        n,
        'member',
        15 + 7 * n + 6 * pg_temp.fraction(n),
        least(60, 15 + 7 * n) * pg_temp.fraction(7 * n),
        NULL,
        NULL
    FROM generate_series(0, 119) AS n
    UNION ALL
    -- Never followed the link, and older than the limit of 7 days: the job deletes these.
    SELECT 120 + n, 'squatter', 8.2 + n * 31.5 / 34, NULL, NULL, NULL
    FROM generate_series(0, 33) AS n
    UNION ALL
    SELECT 154 + n, 'newcomer', 0.3 + n * 6.5 / 14, NULL, NULL, NULL
    FROM generate_series(0, 13) AS n
    UNION ALL
    -- Asked for another link later: five of them within 7 days.
    SELECT 167 + n, 'second chance', days, NULL, NULL, NULL
    FROM unnest('{9,20,33,25,38,30,40}'::numeric[]) WITH ORDINALITY AS list (days, n)
    UNION ALL
    VALUES
        -- Verified, and adding an address that is not verified yet.
        (175, 'changing address', 400, 1, NULL, NULL),
        (176, 'changing address', 210, 2.5, NULL, NULL),
        (177, 'changing address', 90, 45, NULL, NULL),
        -- Two with a verified, two with an unverified, two without an address. Some came
        -- once, before allauth recorded log-ins.
        (178, 'google', 310, NULL, NULL, NULL),
        (179, 'google', 150, 75, NULL, NULL),
        (180, 'google', 64, NULL, NULL, NULL),
        (181, 'google', 28, 14, NULL, NULL),
        (182, 'google', 19, NULL, NULL, ''),
        (183, 'google', 11, 5.5, NULL, ''),
        (184, 'moderator', 600, 0.4, 'nadia.moderates', 'nadia@example.org'),
        (185, 'intern', 35, NULL, 'jonas.support', 'jonas@example.org'),
        (186, 'superuser', 700, NULL, 'admin', 'ops@example.org'),
        (187, 'system', 720, NULL, 'starview', 'system@example.com'),
        -- Unverified and old, but none of them may be deleted.
        (188, 'deactivated', 60, NULL, NULL, NULL),
        (189, 'no address', 90, NULL, NULL, NULL),
        (190, 'logged in once', 21, 20.5, NULL, NULL),
        (191, 'picture', 17, NULL, NULL, NULL),
        (192, 'reviewer', 26, NULL, NULL, NULL),
        (193, 'voter', 26, NULL, NULL, NULL),
        (194, 'follower', 26, NULL, NULL, NULL),
        (195, 'collector', 26, NULL, NULL, NULL)
),
-- Each first name comes with another last name each time.
named AS (
    SELECT
        *,
        (
            '{Amara,Anna,Arjun,Bastien,Carmen,Chloe,Dario,Diego,Elif,Emma,Farah,Finn,'
            'Grace,Hana,Hugo,Ines,Ivan,Jamal,Jonas,Kaia,Kenji,Lars,Leila,Lucia,Mads,'
            'Maya,Mei,Mateo,Nadia,Noah,Nora,Oskar,Priya,Rafael,Rosa,Samir,Sofia,Tomas,'
            'Yara,Zoe}'::text[]
        )[1 + number % 40] AS first,
        (
            '{Abbott,Andersen,Baker,Bianchi,Castillo,Chen,Costa,Dubois,Eriksen,Fischer,'
            'Garcia,Haddad,Hansen,Ito,Jensen,Kaya,Keller,Kim,Kowalski,Larsen,Lopez,'
            'Mbeki,Meyer,Moreau,Murphy,Nakamura,Nguyen,Novak,Okafor,Olsen,Patel,Petrov,'
            'Ramos,Rossi,Santos,Schmidt,Silva,Tanaka,Vargas,Walker,Weber}'::text[]
        )[1 + (number % 40 * 3 + number / 40) % 41] AS last
    FROM listed
)
SELECT
    number,
    kind,
    pg_temp.ago(days) AS joined,
    pg_temp.ago(seen_days) AS seen,
    CASE WHEN username IS NULL THEN first ELSE '' END AS first_name,
    CASE WHEN username IS NULL THEN last ELSE '' END AS last_name,
    coalesce(
        username,
        lower(
            CASE number * 5 % 17 % 6
                WHEN 0 THEN format('%s.%s', first, last)
                WHEN 1 THEN first || last
                WHEN 2 THEN format('%s_%s', last, first)
                WHEN 3 THEN first || last || 60 + number % 40
                WHEN 4 THEN format('%s_%s_astro', first, last)
                ELSE format('darksky.%s%s', first, last)
            END
        )
    ) AS username,
    coalesce(
        email,
        lower(format('%s.%s@example.', first, last))
        || (ARRAY['com', 'org', 'net'])[1 + number % 3]
    ) AS email
FROM named;

INSERT INTO auth_user (
    username, email, first_name, last_name, password, is_staff, is_superuser, is_active,
    last_login, date_joined
)
SELECT
    username,
    email,
    first_name,
    last_name,
    '!starview-demo', -- matches no password; data.py knows the demo's accounts by it
    kind IN ('moderator', 'intern', 'superuser'),
    kind = 'superuser',
    kind <> 'deactivated',
    seen,
    joined
FROM person
ORDER BY joined, username;

ALTER TABLE person ADD COLUMN id integer;
UPDATE person SET id = auth_user.id
FROM auth_user
WHERE auth_user.username = person.username;

INSERT INTO starview_app_userprofile (
    user_id, created_at, updated_at, profile_picture, bio, is_verified,
    is_system_account, pinned_badge_ids, unit_preference, language_preference
)
SELECT
    id,
    joined,
    coalesce(seen, joined),
    CASE
        WHEN kind = 'picture' OR kind = 'member' AND number % 4 > 0
            THEN format('profile_pics/%s.webp', username)
    END,
    CASE WHEN kind = 'member' AND number % 3 > 0 THEN 'Milky Way addict.' ELSE '' END,
    kind = 'member' AND number % 15 = 0,
    kind = 'system',
    '{}',
    CASE WHEN number % 2 = 0 THEN 'imperial' ELSE 'metric' END,
    CASE WHEN number % 2 = 0 THEN 'en' ELSE (ARRAY['es', 'fr', 'ja'])[1 + number % 3] END
FROM person
ORDER BY id;

-- -- What django-allauth keeps of them -------------------------------------------------

INSERT INTO account_emailaddress (user_id, email, verified, "primary")
SELECT
    id,
    email,
    kind IN ('member', 'changing address', 'moderator') OR number IN (178, 179),
    TRUE
FROM person
WHERE kind <> 'no address' AND email <> ''
UNION ALL
SELECT id, 'new.' || email, FALSE, FALSE
FROM person
WHERE kind = 'changing address';

-- The links that were mailed. For one in nine SES was down: created, but never sent.
INSERT INTO account_emailconfirmation (email_address_id, created, sent, key)
SELECT address.id, mail.created, mail.sent, md5(address.email || mail.created)
FROM account_emailaddress AS address
JOIN person ON person.id = address.user_id
CROSS JOIN LATERAL (
    SELECT
        joined AS created,
        CASE WHEN number % 9 <> 8 THEN joined + interval '3 seconds' END AS sent
    WHERE kind NOT IN ('google', 'intern', 'superuser', 'system', 'changing address')
    UNION ALL
    SELECT seen, seen + interval '2 seconds' WHERE kind = 'changing address'
    UNION ALL
    SELECT pg_temp.ago(days), pg_temp.ago(days)
    FROM unnest('{0.5,1.5,2.8,5,6.5,12,15}'::numeric[]) WITH ORDINALITY AS list (days, n)
    WHERE kind = 'second chance' AND number = 167 + n
) AS mail
WHERE NOT address.verified;

INSERT INTO socialaccount_socialaccount (
    user_id, provider, uid, last_login, date_joined, extra_data
)
SELECT
    id,
    'google',
    100000000000000000000 + number,
    coalesce(seen, joined),
    joined,
    jsonb_build_object('email', email, 'name', first_name)
FROM person
WHERE kind = 'google';

-- -- What members contributed ----------------------------------------------------------

CREATE TEMP TABLE member ON COMMIT DROP AS
SELECT id, joined, row_number() OVER (ORDER BY joined) - 1 AS place -- 0 to 122
FROM person
WHERE kind IN ('member', 'changing address');

CREATE OR REPLACE FUNCTION pg_temp.since(joined timestamptz, n bigint)
RETURNS timestamptz
RETURN joined + (pg_temp.ago(0) - joined) * pg_temp.fraction(n)::float;

INSERT INTO starview_app_location (
    created_at, updated_at, name, added_by_id, average_rating, rating_count, latitude,
    longitude, elevation, location_type, type_metadata, visitor_count, times_reported,
    is_verified, verified_by_id, verification_notes, review_summary_stale
)
SELECT
    pg_temp.since(joined, place),
    pg_temp.ago(0),
    (
        '{Cedar Ridge Overlook,Lonely Pine Meadow,Salt Flats South Rim,Glacier Lake Pier,'
        'Raven Rock Fire Tower,Blue Mesa Turnout,Old Quarry Field,Whisper Dunes,'
        'Black Canyon Point,Heron Marsh Boardwalk,High Moor Car Park,Sentinel Dome,'
        'Juniper Flat,Wolf Creek Pass,Cape Solace Lighthouse,Obsidian Crater Rim,'
        'North Fork Trailhead,Painted Hills Lookout,Starfall Ranch,Mirror Tarn}'::text[]
    )[1 + place % 20] || CASE WHEN place < 20 THEN '' ELSE ' (upper)' END,
    id,
    3.2 + 1.8 * pg_temp.fraction(place),
    1 + place * 7 % 29,
    32 + 16 * pg_temp.fraction(3 * place),
    -122 + 20 * pg_temp.fraction(5 * place),
    round(2400 * pg_temp.fraction(11 * place)),
    (ARRAY['dark_sky_site', 'campground', 'viewpoint', 'observatory'])[1 + place % 4],
    '{}',
    0,
    0,
    place % 5 = 0,
    CASE WHEN place % 5 = 0 THEN (SELECT id FROM person WHERE kind = 'moderator') END,
    '',
    TRUE
FROM member
WHERE place < 40
ORDER BY place;

CREATE TEMP TABLE place ON COMMIT DROP AS
SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM starview_app_location;

INSERT INTO starview_app_review (
    created_at, updated_at, location_id, user_id, rating, comment
)
SELECT
    pg_temp.since(joined, member.place + n),
    pg_temp.since(joined, member.place + n),
    place.id,
    member.id,
    3 + (member.place + n) % 3,
    (
        ARRAY[
            'Bortle 2 on a good night, the zodiacal light was obvious.',
            'A bit of glow from the town in the west, else superb.',
            'Bring a windbreak. The airglow was worth it!',
            'Gate closes at 22:00 - arrive early.'
        ]
    )[1 + (member.place + n) % 4]
FROM member
CROSS JOIN generate_series(0, 1) AS n
JOIN place ON place.number = (member.place * 7 + n * 13) % 40
UNION ALL
SELECT pg_temp.ago(25), pg_temp.ago(25), place.id, person.id, 5, 'Dark!'
FROM person
JOIN place ON place.number = 0
WHERE kind = 'reviewer';

INSERT INTO starview_app_locationvisit (user_id, location_id, visited_at)
SELECT member.id, place.id, pg_temp.since(joined, member.place + n)
FROM member
CROSS JOIN generate_series(0, 2) AS n
JOIN place ON place.number = (member.place * 11 + n * 9) % 40;

INSERT INTO starview_app_follow (follower_id, following_id, created_at)
SELECT member.id, other.id, greatest(pg_temp.since(member.joined, n), other.joined)
FROM member
CROSS JOIN generate_series(1, 3) AS n
JOIN member AS other ON other.place = (member.place + n * 17) % 123
UNION ALL
SELECT person.id, member.id, pg_temp.ago(25)
FROM person
JOIN member ON member.place = 0
WHERE kind = 'follower';

INSERT INTO starview_app_vote (
    content_type_id, object_id, user_id, is_upvote, created_at
)
SELECT content_type.id, review.id, voter.id, voter.id % 5 > 0, pg_temp.ago(10)
FROM (
    SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM starview_app_review
) AS review
JOIN (
    SELECT id, place * 2 + 5 + n * 60 AS vote FROM member, generate_series(0, 1) AS n
    UNION ALL
    SELECT id, 0 FROM person WHERE kind = 'voter'
) AS voter ON review.number = voter.vote % 246
JOIN django_content_type AS content_type
    ON app_label = 'starview_app' AND model = 'review';

INSERT INTO starview_app_favoritelocation (user_id, location_id, nickname, created_at)
SELECT person.id, place.id, 'Our place', pg_temp.ago(25)
FROM person
JOIN place ON place.number = 1
WHERE kind = 'collector';
