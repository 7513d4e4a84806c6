"""The web service's tables, one file for each group; this image never alters them."""

from starview_app.models.accounts import UserProfile
from starview_app.models.audit import AuditLog
from starview_app.models.badges import Badge, UserBadge
from starview_app.models.community import (
    FavoriteLocation,
    Follow,
    Location,
    LocationPhoto,
    LocationVisit,
    Report,
    Review,
    ReviewComment,
    ReviewPhoto,
    SummaryFeedback,
    Vote,
)
from starview_app.models.email import EmailBounce, EmailComplaint, EmailSuppression

__all__ = [
    "AuditLog",
    "Badge",
    "EmailBounce",
    "EmailComplaint",
    "EmailSuppression",
    "FavoriteLocation",
    "Follow",
    "Location",
    "LocationPhoto",
    "LocationVisit",
    "Report",
    "Review",
    "ReviewComment",
    "ReviewPhoto",
    "SummaryFeedback",
    "UserBadge",
    "UserProfile",
    "Vote",
]
