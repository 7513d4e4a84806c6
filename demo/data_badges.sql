-- The badges that members hold. Most agree with the rules; `audit_badges` finds the others.
-- demo/data.py runs this file after badges.sql and data_accounts.sql, whose table `member`
-- it uses.

INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)
SELECT member.id, badge.id, member.joined + interval '1 hour'
FROM member
JOIN starview_app_userprofile AS profile ON profile.user_id = member.id
JOIN starview_app_badge AS badge ON CASE slug
    -- Three never got theirs: the web service was restarted at the wrong moment.
    WHEN 'first-light' THEN place NOT IN (31, 58, 90)
    WHEN 'scout' THEN place < 40
    -- One has taken the picture away since.
    WHEN 'mission-ready' THEN bio <> '' AND profile_picture IS NOT NULL OR place = 11
    -- Their reviews and visits were moderated away.
    WHEN 'explorer' THEN place = 7
    WHEN 'reviewer' THEN place IN (7, 45)
    -- Nothing was removed, but ratings fell.
    WHEN 'quality-contributor' THEN place IN (3, 24)
    -- Members who joined early have it, but for those who verified late.
    WHEN 'pioneer' THEN place < 80 AND place % 9 > 0
END;

-- Badges pinned on two profiles; one of them is no longer earned.
UPDATE starview_app_userprofile AS profile
SET pinned_badge_ids = ARRAY(
    SELECT badge_id
    FROM starview_app_userbadge AS held
    WHERE held.user_id = profile.user_id
    ORDER BY badge_id
    LIMIT 3
)
FROM member
WHERE member.id = profile.user_id AND place IN (3, 7);
