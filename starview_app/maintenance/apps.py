"""The app with this image's own tables, its jobs and the templates of reports."""

from django.apps import AppConfig


class MaintenanceConfig(AppConfig):
    name = "starview_app.maintenance"
    label = "maintenance"

    def ready(self) -> None:
        from starview_app.maintenance import notify  # needs the models, ready only now

        notify.listen()
