"""What members contribute; an account that owns any of it is never deleted."""

from typing import Any

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import models


def _member(**options: Any) -> Any:
    return models.ForeignKey(
        settings.AUTH_USER_MODEL, **{"on_delete": models.CASCADE, **options}
    )


def _reviewer(related_name: str) -> Any:
    """A reviewer on the staff; if the account is deleted, the row is kept."""
    return _member(
        on_delete=models.SET_NULL, null=True, blank=True, related_name=related_name
    )


class _Dated(models.Model):
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class Location(_Dated):
    """A place. The table has more columns, of PostGIS for example, not mapped here."""

    TYPES = ("dark_sky_site", "observatory", "campground", "viewpoint", "other")

    name = models.CharField(max_length=200)
    added_by = _member()
    latitude = models.FloatField()
    longitude = models.FloatField()
    elevation = models.FloatField(default=0)
    location_type = models.CharField(
        max_length=20, choices=[(name, name) for name in TYPES], default="dark_sky_site"
    )
    type_metadata = models.JSONField(default=dict, blank=True)
    average_rating = models.DecimalField(max_digits=3, decimal_places=2, default=0)
    rating_count = models.PositiveIntegerField(default=0)
    visitor_count = models.PositiveIntegerField(default=0)
    times_reported = models.PositiveIntegerField(default=0)
    is_verified = models.BooleanField(default=False)
    verified_by = _reviewer("verified_locations")
    verification_notes = models.TextField(blank=True, default="")
    review_summary_stale = models.BooleanField(default=True)


class SummaryFeedback(models.Model):
    """A member's opinion on the summary of a location's reviews."""

    user = _member()
    location = models.ForeignKey(Location, on_delete=models.CASCADE)


class Review(_Dated):
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    user = _member()
    rating = models.IntegerField()
    comment = models.TextField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "location"], name="review_once")
        ]


class ReviewComment(_Dated):
    review = models.ForeignKey(Review, on_delete=models.CASCADE)
    user = _member()
    content = models.TextField()


class _Photo(_Dated):
    image = models.CharField(max_length=100)
    thumbnail = models.CharField(max_length=100, null=True, blank=True)
    caption = models.CharField(max_length=255, blank=True, default="")
    order = models.PositiveSmallIntegerField(default=0)

    class Meta:
        abstract = True


class ReviewPhoto(_Photo):
    review = models.ForeignKey(Review, on_delete=models.CASCADE)


class LocationPhoto(_Photo):
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    uploaded_by = _member(on_delete=models.SET_NULL, null=True)


class Vote(models.Model):
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveIntegerField()
    user = _member()
    is_upvote = models.BooleanField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "content_type", "object_id"], name="vote_once"
            )
        ]


class LocationVisit(models.Model):
    user = _member()
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    visited_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "location"], name="visit_once")
        ]


class FavoriteLocation(models.Model):
    user = _member()
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    nickname = models.CharField(max_length=50, null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)


class Follow(models.Model):
    follower = _member(related_name="following")
    following = _member(related_name="followers")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["follower", "following"], name="follow_once"
            )
        ]


class Report(_Dated):
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveIntegerField()
    reported_by = _member()
    reviewed_by = _reviewer("reviewed_reports")
    report_type = models.CharField(max_length=20)
    description = models.TextField(blank=True, default="")
    status = models.CharField(max_length=20, default="PENDING")
    review_notes = models.TextField(blank=True, default="")
