"""E-mail events that Amazon SES reports through SNS, one bounce row per address."""

from django.conf import settings
from django.db import models


def _choices(*names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


class EmailBounce(models.Model):
    email = models.EmailField(max_length=254, db_index=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True
    )
    bounce_type = models.CharField(
        max_length=20, choices=_choices("hard", "soft", "transient")
    )
    bounce_subtype = models.CharField(
        max_length=50,
        choices=_choices(
            "undetermined",
            "general",
            "noemail",
            "suppressed",
            "mailboxfull",
            "messagetoolarge",
            "contentrejected",
            "attachmentrejected",
        ),
        default="undetermined",
    )
    bounce_count = models.IntegerField(default=1)
    # Plain fields, without auto_now: saving a row must not look like a new bounce.
    first_bounce_date = models.DateTimeField()
    last_bounce_date = models.DateTimeField()
    sns_message_id = models.CharField(max_length=255, unique=True)
    diagnostic_code = models.TextField(blank=True, default="")
    raw_notification = models.JSONField(default=dict, blank=True)
    suppressed = models.BooleanField(default=False)

    class Meta:
        db_table = "starview_email_bounce"


class EmailComplaint(models.Model):
    email = models.EmailField(max_length=254, db_index=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True
    )
    complaint_type = models.CharField(
        max_length=50,
        choices=_choices(
            "abuse", "auth-failure", "fraud", "not-spam", "other", "virus"
        ),
        default="other",
    )
    user_agent = models.CharField(max_length=255, blank=True, default="")
    complaint_date = models.DateTimeField()
    sns_message_id = models.CharField(max_length=255, unique=True)
    feedback_id = models.CharField(max_length=255, blank=True, default="")
    raw_notification = models.JSONField(default=dict, blank=True)
    suppressed = models.BooleanField(default=True)
    reviewed = models.BooleanField(default=False)

    class Meta:
        db_table = "starview_email_complaint"


class EmailSuppression(models.Model):
    email = models.EmailField(max_length=254, unique=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True
    )
    reason = models.CharField(
        max_length=50,
        choices=_choices(
            "hard_bounce", "soft_bounce", "complaint", "manual", "unsubscribe"
        ),
    )
    added_date = models.DateTimeField()
    notes = models.TextField(blank=True, default="")
    bounce = models.ForeignKey(
        EmailBounce, on_delete=models.SET_NULL, null=True, blank=True
    )
    complaint = models.ForeignKey(
        EmailComplaint, on_delete=models.SET_NULL, null=True, blank=True
    )
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "starview_email_suppression"
