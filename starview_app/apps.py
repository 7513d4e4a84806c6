"""The app with the models of the web service's tables, and the commands."""

from django.apps import AppConfig


class StarviewAppConfig(AppConfig):
    name = "starview_app"

    def ready(self) -> None:
        from starview_app import checks  # noqa: F401 - registers them
