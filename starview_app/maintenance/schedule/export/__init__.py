"""The crontab in the forms of other platforms: a module and templates for each."""
