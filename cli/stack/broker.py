"""The broker: whether Redis answers, how it is set up, and how long its queues are."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import redis

from cli.errors import BrokerUnreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLook:
    """What Redis said of itself."""

    version: str
    eviction: str  # noeviction, or a policy under which it drops messages
    appends: bool  # keeps what it has on disk
    num_bytes: int
    messages: dict[str, int]  # by queue
    num_unacked: int  # delivered to workers, not acked yet


def look_at_broker(url: str, queues: Iterable[str] = ()) -> BrokerLook:
    """Ask Redis; raises BrokerUnreachable with the reason."""
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=5, socket_timeout=5, decode_responses=True
        ) as client:
            info = client.info()
            with client.pipeline(transaction=False) as pipeline:
                names = list(queues)
                for name in names:
                    pipeline.llen(name)
                pipeline.hlen("unacked")
                *lengths, num_unacked = pipeline.execute()
    except redis.AuthenticationError as error:
        raise BrokerUnreachable(
            f"Redis at {shown(url)} refuses the password: {error}; put the right one into "
            "TIDEMILL_REDIS_URL (redis://:password@host:6379/0)"
        ) from error
    except (redis.RedisError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise BrokerUnreachable(
            f"Redis at {shown(url)} cannot be reached: {reason}; start it, or say with "
            "TIDEMILL_REDIS_URL where it is"
        ) from error
    return BrokerLook(
        version=str(info.get("valkey_version") or info.get("redis_version", "?")),
        eviction=str(info.get("maxmemory_policy", "?")),
        appends=bool(info.get("aof_enabled")),
        num_bytes=int(info.get("used_memory", 0)),
        messages=dict(zip(names, lengths, strict=True)),
        num_unacked=int(num_unacked),
    )


def shown(url: str) -> str:
    """The URL with its password masked."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))
