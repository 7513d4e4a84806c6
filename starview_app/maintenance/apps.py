"""What this image owns: how jobs run, what they do, and the report's templates."""

from django.apps import AppConfig


class MaintenanceConfig(AppConfig):
    name = "starview_app.maintenance"
    label = "maintenance"

    def ready(self) -> None:
        from starview_app.maintenance import notify  # its models are ready now

        notify.listen()
