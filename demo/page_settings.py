"""The image's settings, for the demo's page: nothing else here serves HTTP."""

from starview.settings import *  # noqa: F403

ROOT_URLCONF = "demo.page"
# Only these names, so that pages of another site cannot read this one by a name of
# theirs.
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
SECURE_SSL_REDIRECT = False
# CommonMiddleware refuses other names.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", *MIDDLEWARE]  # noqa: F405
INSTALLED_APPS = [*INSTALLED_APPS, "demo"]  # noqa: F405
TEMPLATES = [
    {
        **TEMPLATES[0],  # noqa: F405
        "OPTIONS": {"context_processors": ["demo.page.console"]},
    }
]
