from django.db import migrations, models

# Of two records with the same names, which an older version could leave behind, the
# first keeps them.
_NAME_STEMS = r"""
    UPDATE maintenance_auditarchive AS record
    SET stem = named.stem || CASE WHEN named.nth > 1 THEN '#' || record.id ELSE '' END
    FROM (
        SELECT
            id,
            stem,
            row_number() OVER (PARTITION BY location, stem ORDER BY id) AS nth
        FROM (
            SELECT
                id,
                location,
                regexp_replace(names ->> 0, '\.(json|txt)(\.gz)?$', '') AS stem
            FROM maintenance_auditarchive
        ) AS unnumbered
    ) AS named
    WHERE named.id = record.id
"""


class Migration(migrations.Migration):
    dependencies = [("maintenance", "0002_job_runs")]

    operations = [
        migrations.AlterField(
            model_name="auditarchive",
            name="state",
            field=models.CharField(
                choices=[
                    ("open", "Open"),
                    ("archived", "Archived"),
                    ("abandoned", "Abandoned"),
                    ("removing", "Removing"),
                    ("removed", "Removed"),
                ],
                default="open",
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="auditarchive",
            name="stem",
            field=models.CharField(default="", max_length=255),
            preserve_default=False,
        ),
        migrations.RunSQL(_NAME_STEMS, migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="auditarchive",
            constraint=models.UniqueConstraint(
                fields=("location", "stem"), name="archive_stem_once"
            ),
        ),
    ]
