"""Django's `flush`, refused."""

from django.core.management.commands import flush

from starview_app.management.refused import RefusedCommand


class Command(RefusedCommand, flush.Command):
    reason = (
        "it would empty every table of the database. HINT: drop a stand-alone database"
        " instead; those of the web service are not for this image to empty"
    )
    help = f"Refused: {reason}"
