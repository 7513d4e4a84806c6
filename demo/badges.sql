-- The badges, as the web service's own migrations make them.

INSERT INTO starview_app_badge (
    name, slug, description, category, criteria_type, criteria_value,
    criteria_secondary, tier, is_rare, icon_path, display_order, created_at
)
SELECT
    initcap(replace(slug, '-', ' ')), slug, '', category, criteria_type, criteria_value,
    criteria_secondary, tier, is_rare, format('/badges/%s.png', slug),
    row_number() OVER (), '2025-10-01'
FROM (
    VALUES
        ('first-light', 'EXPLORATION', 'LOCATION_VISITS', 1, NULL::integer, 1, FALSE),
        ('explorer', 'EXPLORATION', 'LOCATION_VISITS', 5, NULL, 2, FALSE),
        ('pathfinder', 'EXPLORATION', 'LOCATION_VISITS', 10, NULL, 3, FALSE),
        ('stargazer', 'EXPLORATION', 'LOCATION_VISITS', 25, NULL, 4, FALSE),
        ('celestial-navigator', 'EXPLORATION', 'LOCATION_VISITS', 50, NULL, 5, FALSE),
        ('cosmic-voyager', 'EXPLORATION', 'LOCATION_VISITS', 100, NULL, 5, TRUE),
        ('scout', 'CONTRIBUTION', 'LOCATIONS_ADDED', 1, NULL, 1, FALSE),
        ('discoverer', 'CONTRIBUTION', 'LOCATIONS_ADDED', 5, NULL, 2, FALSE),
        ('trailblazer', 'CONTRIBUTION', 'LOCATIONS_ADDED', 10, NULL, 3, FALSE),
        ('location-legend', 'CONTRIBUTION', 'LOCATIONS_ADDED', 25, NULL, 4, FALSE),
        ('quality-contributor', 'QUALITY', 'LOCATION_RATING', 3, NULL, 1, FALSE),
        ('trusted-source', 'QUALITY', 'LOCATION_RATING', 6, NULL, 2, FALSE),
        ('stellar-curator', 'QUALITY', 'LOCATION_RATING', 12, NULL, 3, FALSE),
        ('elite-curator', 'QUALITY', 'LOCATION_RATING', 24, NULL, 4, FALSE),
        ('reviewer', 'REVIEW', 'REVIEWS_WRITTEN', 5, NULL, 1, FALSE),
        ('helpful-voice', 'REVIEW', 'UPVOTES_RECEIVED', 10, NULL, 2, FALSE),
        ('expert-reviewer', 'REVIEW', 'HELPFUL_RATIO', 25, 75, 3, FALSE),
        ('trusted-critic', 'REVIEW', 'HELPFUL_RATIO', 50, 80, 4, FALSE),
        ('review-master', 'REVIEW', 'HELPFUL_RATIO', 100, 85, 5, FALSE),
        ('conversationalist', 'COMMUNITY', 'COMMENTS_WRITTEN', 10, NULL, 1, FALSE),
        ('connector', 'COMMUNITY', 'FOLLOWER_COUNT', 10, NULL, 2, FALSE),
        ('influencer', 'COMMUNITY', 'FOLLOWER_COUNT', 50, NULL, 3, FALSE),
        ('community-leader', 'COMMUNITY', 'FOLLOWER_COUNT', 100, NULL, 4, FALSE),
        ('ambassador', 'COMMUNITY', 'FOLLOWER_COUNT', 200, NULL, 5, FALSE),
        ('photographer', 'SPECIAL', 'SPECIAL_CONDITION', 25, NULL, 1, TRUE),
        ('mission-ready', 'SPECIAL', 'PROFILE_COMPLETE', 3, NULL, 1, FALSE),
        ('pioneer', 'TENURE', 'SPECIAL_CONDITION', 100, NULL, 1, TRUE)
) AS badge (
    slug, category, criteria_type, criteria_value, criteria_secondary, tier, is_rare
);
