"""Badges and who earned them."""

from django.conf import settings
from django.db import models


class Badge(models.Model):
    name = models.CharField(max_length=50, unique=True)
    slug = models.SlugField(max_length=50, unique=True)
    description = models.TextField(blank=True, default="")
    category = models.CharField(max_length=20)
    criteria_type = models.CharField(max_length=30)
    criteria_value = models.IntegerField(default=0)
    criteria_secondary = models.IntegerField(null=True, blank=True)
    tier = models.PositiveSmallIntegerField(default=1)
    is_rare = models.BooleanField(default=False)
    icon_path = models.CharField(max_length=255, blank=True, default="")
    display_order = models.IntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)


class UserBadge(models.Model):
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    badge = models.ForeignKey(Badge, on_delete=models.CASCADE)
    earned_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "badge"], name="badge_once")
        ]
