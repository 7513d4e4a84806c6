"""The Django project of the maintenance image."""

__version__ = "1.0.0"
