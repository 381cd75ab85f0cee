"""The broker: whether Redis answers, its settings, and the lengths of its queues."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.errors import BrokerUnreachable
from db.connection.url_redaction import masked


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """The state that Redis reports."""

    version: str
    eviction: str  # noeviction, or a policy under which it drops messages
    appends: bool  # keeps what it has on disk
    num_bytes: int
    messages: dict[str, int]  # by queue
    num_unacked: int  # delivered to workers, not acked yet
    faults: tuple[str, ...]  # what it says has gone wrong, a sentence each
    folder: str | None  # where it keeps its files, on its own machine
    access: dict[str, str]  # its settings of who may reach it; empty where it does not say


# What `INFO` says went wrong, and what to do.
_FAILED = {
    "aof_last_write_status": "its last write to its append-only file failed",
    "aof_last_bgrewrite_status": "its last rewrite of its append-only file failed",
    "rdb_last_bgsave_status": "its last snapshot failed",
}
TRIAL_KEY = "tidemill.trial"


def read_broker(url: str, queues: Iterable[str] = ()) -> BrokerState:
    """Query Redis; raises BrokerUnreachable with the reason."""
    try:
        with redis.Redis.from_url(
            url,
            socket_connect_timeout=5,
            socket_timeout=5,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),  # by itself it asks ten times more, for four seconds
        ) as client:
            info = client.info()
            with client.pipeline(transaction=False) as pipeline:
                names = list(queues)
                for name in names:
                    pipeline.llen(name)
                pipeline.hlen("unacked")
                *lengths, num_unacked = pipeline.execute()
            refusal = _trial_write(client)
            folder = _folder(client)
            access = _access(client)
    except redis.AuthenticationError as error:
        raise BrokerUnreachable(
            f"Redis at {masked(url)} refuses the password: {error}; put the right one into "
            "TIDEMILL_REDIS_URL (redis://:password@host:6379/0)"
        ) from error
    except (redis.RedisError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        todo = "start it, or say with TIDEMILL_REDIS_URL where it is"
        if "has expired" in reason:
            todo = "renew the certificate there"
        elif "SSL:" in reason or "X509:" in reason:  # of OpenSSL, which redis-py quotes
            todo = (
                "give the file of its authority as ssl_ca_certs in TIDEMILL_REDIS_URL, and there "
                "the host by the name in its certificate; ssl_certfile and ssl_keyfile belong "
                "together"
            )
        raise BrokerUnreachable(
            f"Redis at {masked(url)} cannot be reached: {reason}; {todo}"
        ) from error
    return BrokerState(
        version=str(info.get("valkey_version") or info.get("redis_version", "?")),
        eviction=str(info.get("maxmemory_policy", "?")),
        appends=bool(info.get("aof_enabled")),
        num_bytes=int(info.get("used_memory", 0)),
        messages=dict(zip(names, lengths, strict=True)),
        num_unacked=int(num_unacked),
        faults=(*_faults(info), *refusal),
        folder=folder,
        access=access,
    )


def _faults(info: Mapping[str, Any]) -> Iterator[str]:
    for field, fault in _FAILED.items():
        if info.get(field, "ok") != "ok":
            yield f"{fault} ({field} is {info[field]}); look at its disk and its log"
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit and used >= 0.9 * limit:
        yield (
            f"it uses {used / 2**20:,.1f} of its {limit / 2**20:,.1f} MiB (maxmemory), and refuses "
            "messages when that is full; raise maxmemory"
        )


def _trial_write(client: "redis.Redis") -> tuple[str, ...]:
    """Write a key that expires within a second; returns the faults."""
    try:
        client.set(TRIAL_KEY, "", px=1000)
    except redis.exceptions.NoPermissionError:
        return ()  # of this key, which says nothing of the queues
    except redis.ResponseError as error:
        return (f"it refuses to write: {error}",)
    return ()


def _access(client: "redis.Redis") -> dict[str, str]:
    try:
        return {
            name: str(value)
            for name in ("bind", "protected-mode")
            for value in client.config_get(name).values()
        }
    except redis.RedisError:
        return {}


def _folder(client: "redis.Redis") -> str | None:
    try:
        return str(client.config_get("dir").get("dir")) or None
    except redis.RedisError:
        return None  # many providers allow nobody to ask
