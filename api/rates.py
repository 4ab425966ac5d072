"""How many requests each tenant makes in a minute: counted in Redis for all API processes, here while it is away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage

from shared import logs

WINDOW_S = 60
REDIS_TIMEOUT_S = 0.5
RATE_HEADERS = "hilum.rate_headers"  # in the scope of a request, for whoever sends its answer
AWAY_S = 5.0  # Redis that did not answer is left alone this long; then one request tries it again

log = logs.get("api.rates")


@dataclass(frozen=True)
class Window:
    """What a tenant has used of a minute of the clock that ends in `reset_s`; this request is counted."""

    limit: int
    used: int
    reset_s: int

    @property
    def exceeded(self) -> bool:
        """Whether this request is one too many."""
        return self.used > self.limit

    @property
    def headers(self) -> dict[str, str]:
        """The RateLimit fields (draft-ietf-httpapi-ratelimit-headers-03); the reset in seconds from now."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(max(0, self.limit - self.used)),
            "RateLimit-Reset": str(self.reset_s),
        }


class Rates:
    """The counters as one API process sees them; used on its event loop only."""

    def __init__(self, broker_url: str) -> None:
        self._here = MemoryStorage()
        self._redis = _redis(broker_url)
        self._away_until = 0.0

    async def take(self, tenant_id: str, per_minute: int) -> Window:
        """Count one request of the tenant; never raises, and never waits longer than REDIS_TIMEOUT_S."""
        minute, passed_s = divmod(time.time(), WINDOW_S)
        item = RateLimitItemPerMinute(per_minute)
        used = await self._count(item.key_for(tenant_id, str(int(minute))))
        return Window(per_minute, used, WINDOW_S - int(passed_s))

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            # The library has no verb for it.
            await self._redis.bridge.get_connection().aclose()  # type: ignore[attr-defined]

    async def _count(self, key: str) -> int:
        now = time.monotonic()
        if self._redis is None or now < self._away_until:
            return await self._here.incr(key, WINDOW_S)
        was_away = self._away_until > 0
        if was_away:
            self._away_until = now + AWAY_S  # nobody else tries meanwhile
        try:
            used = await asyncio.wait_for(self._redis.incr(key, WINDOW_S), REDIS_TIMEOUT_S)
        except Exception as error:
            # Whatever the client raises, it means the same: counting here is better than not counting.
            self._away_until = time.monotonic() + AWAY_S
            log.warning("rates_counted_here", error=type(error).__name__)
            return await self._here.incr(key, WINDOW_S)
        self._away_until = 0.0
        return used


def _redis(broker_url: str) -> RedisStorage | None:
    """The counters in the broker where it is a Redis; any other broker has none."""
    scheme, _, rest = broker_url.partition("://")
    if scheme not in ("redis", "rediss", "valkey", "valkeys"):
        return None
    url = f"async+{scheme.replace('valkey', 'redis')}://{rest}"
    return RedisStorage(url, implementation="redispy", key_prefix="hilum:rates", retry=None)  # type: ignore[arg-type]
