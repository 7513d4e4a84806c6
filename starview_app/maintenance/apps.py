"""What this image owns: the jobs, and later the tables maintenance_*."""

from django.apps import AppConfig


class MaintenanceConfig(AppConfig):
    name = "starview_app.maintenance"
    label = "maintenance"
