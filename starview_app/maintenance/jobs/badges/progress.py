"""The web service's cache of members' progress, which it keeps for five minutes."""

from collections.abc import Iterable

from django.core.cache import cache
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

KEEPS_SECONDS = 300


class CachedProgress:
    """Deletes the cached progress of members whose badges have changed.

    If the cache does not answer, this is tried again only once, at the end, since each
    attempt may take seconds.
    """

    def __init__(self) -> None:
        self._left: list[int] = []
        self._is_away = False

    def forget(self, user_ids: Iterable[int]) -> None:
        """Delete from the cache; call it after the commit, or old badges are cached."""
        self._left += user_ids
        if not self._is_away:
            self._is_away = bool(self._delete())

    def finish(self) -> list[str]:
        """Try once more, and return what is still wrong: no line or one."""
        why = self._delete()
        if not why:
            return []
        minutes = KEEPS_SECONDS // 60
        return [
            "the badges are changed, but the web service may show the old ones of"
            f" {len(self._left)} user(s) for {minutes} minutes: its cache in REDIS_URL"
            f" did not answer: {why} HINT: nothing has to be run again, what is cached"
            " expires by itself; start Redis, or correct REDIS_URL"
        ]

    def _delete(self) -> str:
        """Delete what is left; return why that failed, or an empty string."""
        if self._left:
            try:
                cache.delete_many(f"badge_progress:{number}" for number in self._left)
            except (RedisError, ConnectionInterrupted, OSError) as error:
                return " ".join(str(error).split())
            self._left = []
        return ""
