"""What members contribute; an account that owns any of it is never clutter."""

from typing import Any

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import models


def _member(**options: Any) -> Any:
    return models.ForeignKey(
        settings.AUTH_USER_MODEL, **{"on_delete": models.CASCADE, **options}
    )


class Location(models.Model):
    """The web service's table has PostGIS and other columns that are not mapped."""

    created_at = models.DateTimeField(auto_now_add=True)
    name = models.CharField(max_length=200)
    added_by = _member()
    average_rating = models.DecimalField(max_digits=3, decimal_places=2, default=0)
    rating_count = models.PositiveIntegerField(default=0)


class Review(models.Model):
    created_at = models.DateTimeField(auto_now_add=True)
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    user = _member()
    rating = models.PositiveSmallIntegerField()
    comment = models.TextField(blank=True, default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "location"], name="review_once")
        ]


class ReviewComment(models.Model):
    created_at = models.DateTimeField(auto_now_add=True)
    review = models.ForeignKey(Review, on_delete=models.CASCADE)
    user = _member()
    content = models.TextField()


class ReviewPhoto(models.Model):
    review = models.ForeignKey(Review, on_delete=models.CASCADE)
    image = models.CharField(max_length=255)
    thumbnail = models.CharField(max_length=255, blank=True, default="")


class LocationPhoto(models.Model):
    location = models.ForeignKey(Location, on_delete=models.CASCADE)
    uploaded_by = _member(on_delete=models.SET_NULL, null=True)
    image = models.CharField(max_length=255)
    thumbnail = models.CharField(max_length=255, blank=True, default="")


class Vote(models.Model):
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveIntegerField()
    user = _member()
    is_upvote = models.BooleanField()

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
    nickname = models.CharField(max_length=200, blank=True, default="")
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


class Report(models.Model):
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveIntegerField()
    reported_by = _member()
    report_type = models.CharField(max_length=50)
    status = models.CharField(max_length=20, default="pending")
    created_at = models.DateTimeField(auto_now_add=True)
