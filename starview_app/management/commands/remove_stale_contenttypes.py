"""Django's `remove_stale_contenttypes`, refused."""

from django.contrib.contenttypes.management.commands import remove_stale_contenttypes

from starview_app.management.refused import RefusedCommand


class Command(RefusedCommand, remove_stale_contenttypes.Command):
    reason = (
        "it would delete content types of models that only the web service has, and the"
        " votes and reports that refer to them. HINT: run it in the web service"
    )
    help = f"Refused: {reason}"
