"""Starview's tables about an account, besides those of Django and allauth."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models


class UserProfile(models.Model):
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    profile_picture = models.CharField(max_length=100, null=True, blank=True)
    bio = models.TextField(blank=True, default="")
    is_verified = models.BooleanField(default=False)
    is_system_account = models.BooleanField(default=False)
    pinned_badge_ids = ArrayField(models.IntegerField(), default=list, blank=True)
    unit_preference = models.CharField(
        max_length=10,
        choices=[("metric", "metric"), ("imperial", "imperial")],
        default="metric",
    )
    language_preference = models.CharField(max_length=10, default="en")
