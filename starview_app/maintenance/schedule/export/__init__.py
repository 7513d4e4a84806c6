"""The crontab in the forms of other platforms: a module each, and templates of their files."""
