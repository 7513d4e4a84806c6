"""The audit log: written by the web service, removed only by the archive."""

from django.conf import settings
from django.db import models
from django.utils import timezone


class AuditLog(models.Model):
    EVENT_TYPES = (
        "login_success",
        "login_failed",
        "login_locked",
        "logout",
        "registration_success",
        "registration_failed",
        "password_reset_requested",
        "password_changed",
        "location_verified",
        "location_unverified",
        "content_moderated",
        "permission_denied",
        "access_forbidden",
        "verification_email_resent",
        "verification_email_failed",
        "password_reset_failed",
        "password_reset_email_failed",
        "password_changed_notification_failed",
    )

    event_type = models.CharField(
        max_length=50, choices=[(name, name) for name in EVENT_TYPES], db_index=True
    )
    timestamp = models.DateTimeField(default=timezone.now, db_index=True)
    success = models.BooleanField(default=True)
    message = models.TextField(blank=True, default="")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True
    )
    username = models.CharField(max_length=150, blank=True, default="", db_index=True)
    ip_address = models.GenericIPAddressField(null=True, blank=True, db_index=True)
    user_agent = models.TextField(blank=True, default="")
    metadata = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["-timestamp", "event_type"], name="audit_time_event"),
            models.Index(fields=["user", "-timestamp"], name="audit_user_time"),
            models.Index(fields=["ip_address", "-timestamp"], name="audit_ip_time"),
        ]
