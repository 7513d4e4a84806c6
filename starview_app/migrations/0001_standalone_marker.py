"""Marks a database as one whose tables this image made: stand-alone, not the web's.

It runs before every other table is made, so that a `migrate` that was killed half-way
can be run again, and the `migrate` command can refuse a database without the mark.
"""

from django.db import migrations


class Migration(migrations.Migration):
    run_before = [("contenttypes", "0001_initial"), ("sites", "0001_initial")]
    operations = []
