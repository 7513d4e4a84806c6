-- The web service's own address, and a wrong set-up of the sign-in with Google: two apps, of
-- which allauth can use only one. setup_google_oauth reports them.

UPDATE django_site SET domain = 'starview.app', name = 'Starview' WHERE id = 1;

WITH app AS (
    INSERT INTO socialaccount_socialapp (
        provider, name, client_id, secret, key, provider_id, settings
    )
    VALUES
        ('google', 'Google', '1029.apps.googleusercontent.com', 'demo', '', '', '{}'),
        ('google', 'Google (old)', '0815.apps.googleusercontent.com', 'demo', '', '', '{}')
    RETURNING id
)
INSERT INTO socialaccount_socialapp_sites (socialapp_id, site_id)
SELECT id, 1 FROM app;
