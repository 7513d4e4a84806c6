"""The web service's tables, as this image sees them, and the commands."""

from django.apps import AppConfig


class StarviewAppConfig(AppConfig):
    name = "starview_app"

    def ready(self) -> None:
        from starview_app import checks  # noqa: F401 - registers them
