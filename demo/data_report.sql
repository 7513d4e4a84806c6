-- Data for the analytics report: photos, comments, and reports that wait for a review.
-- demo/data.py runs it after data_accounts.sql, whose tables it uses.

INSERT INTO starview_app_locationphoto (
    created_at, updated_at, image, thumbnail, caption, "order", location_id,
    uploaded_by_id
)
SELECT
    pg_temp.ago(days), pg_temp.ago(days), format('location_photos/%s.jpg', member.id),
    NULL, 'The site at dusk', 0, place.id, member.id
FROM member
JOIN place ON place.number = member.place % 40
CROSS JOIN LATERAL (SELECT 60 * pg_temp.fraction(member.place) AS days) AS taken
WHERE member.place % 4 = 0;

INSERT INTO starview_app_reviewphoto (
    created_at, updated_at, image, thumbnail, caption, "order", review_id
)
SELECT
    pg_temp.ago(days), pg_temp.ago(days), format('review_photos/%s.jpg', review.id),
    NULL, '', 0, review.id
FROM starview_app_review AS review
CROSS JOIN LATERAL (SELECT 60 * pg_temp.fraction(review.id) AS days) AS taken
WHERE review.id % 6 = 0;

INSERT INTO starview_app_reviewcomment (
    created_at, updated_at, review_id, user_id, content
)
SELECT DISTINCT ON (member.id)
    pg_temp.ago(days), pg_temp.ago(days), review.id, member.id, 'Thank you, very useful!'
FROM member
JOIN starview_app_review AS review ON review.user_id <> member.id
CROSS JOIN LATERAL (SELECT 60 * pg_temp.fraction(member.place + 7) AS days) AS written
WHERE member.place % 3 = 0
ORDER BY member.id, review.id;

-- Thirteen reports wait; more than ten are a warning.
INSERT INTO starview_app_report (
    created_at, updated_at, content_type_id, object_id, reported_by_id, report_type,
    description, status, review_notes
)
SELECT
    pg_temp.ago(days), pg_temp.ago(days), content_type.id, place.id, member.id,
    (ARRAY['SPAM', 'DUPLICATE', 'INACCURATE'])[1 + member.place % 3],
    'The gate is locked by now.',
    CASE WHEN member.place < 13 THEN 'PENDING' ELSE 'RESOLVED' END,
    ''
FROM member
JOIN place ON place.number = member.place % 40
JOIN django_content_type AS content_type
    ON app_label = 'starview_app' AND model = 'location'
CROSS JOIN LATERAL (SELECT 40 * pg_temp.fraction(member.place + 3) AS days) AS made
WHERE member.place < 25;
