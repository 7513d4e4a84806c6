"""Exports the crontab to other platforms: a module and templates for each."""
