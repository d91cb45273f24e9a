"""cachedb_redis -- cached values in Redis: several nodes that name the same database share them, as with OpenSIPS' module.

It needs the package redis (redis-py), which is imported when the module is loaded. Keys and values are stored as they are.
"""
from __future__ import annotations

import functools
import importlib
import re
import sys
from typing import Any, NamedTuple

import midatagram as mi

base = mi.shared("opensips_base")

LIMIT_S = 0.45  # for all that a command does with Redis, the lookup of a name included
CONNECTIONS = 50  # of a child to one database


class Place(NamedTuple):
    """A database of Redis: what cache commands call it, and where it is."""

    system: str
    host: str
    port: int
    number: int
    user: str | None
    password: str | None


URL = re.compile(r"(?P<system>redis(?::[^:/@]+)?)://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
                 r"(?P<host>\[[0-9A-Fa-f:]+\]|[^:/@\[\]]+)(?::(?P<port>\d{1,5}))?(?:/(?P<number>\d*))?")


def redis_url(value: Any) -> Place:
    """Converter: `redis[:GROUP]://[[USER]:PASSWORD@]HOST[:PORT]/[DATABASE]`."""
    match = URL.fullmatch(mi.string(value))
    if not match or not 0 < int(match["port"] or 6379) < 65536:
        raise ValueError(f'takes "redis:GROUP://:PASSWORD@HOST:6379/0", not "{value}"')
    return Place(match["system"], match["host"].strip("[]"), int(match["port"] or 6379), int(match["number"] or 0),
                 match["user"] or None, match["password"])


PARAMS = [
    mi.Param("cachedb_url", [], redis_url, "a database and the name of its cache system, redis:GROUP: "
             "redis:GROUP://:PASSWORD@HOST:PORT/DATABASE", repeat=True),
    mi.Param("connect_timeout", 200, mi.integer(1, 400), "how long to wait for a connection to Redis, ms"),
    mi.Param("query_timeout", 200, mi.integer(1, 400), "how long to wait for a reply of Redis, ms"),
    *base.without_effect("enable_raw_query_quoting ftsearch_index_name ftsearch_json_mset_expire ftsearch_json_prefix "
                         "ftsearch_max_results lazy_connect redis_keepalive shutdown_on_error use_tls"),
]


def init(ctx: Any) -> None:
    """Check that the package is there."""
    try:
        importlib.import_module("redis")
    except ImportError:
        ctx.refuse("cachedb_url", f"the package redis is missing: {sys.executable} -m pip install redis, "
                                  "or apt install python3-redis")


class Database:
    """One database as the cache commands use a store; mi.StoreError where it fails."""

    def __init__(self, place: Place, connect_s: float, query_s: float, log: Any):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
        self.name, self.log, self.away = f"redis at {place.host}:{place.port}", log, False
        self.refusal, self.errors = redis.ResponseError, (redis.RedisError, OSError)
        pool = redis.BlockingConnectionPool(
            host=place.host, port=place.port, db=place.number, username=place.user, password=place.password,
            socket_connect_timeout=connect_s, socket_timeout=query_s, max_connections=CONNECTIONS, timeout=LIMIT_S,
            retry=Retry(NoBackoff(), 0))
        self.client = redis.Redis(connection_pool=pool)

    def put(self, space: str, key: str, value: str, lifetime_s: int) -> None:
        """Store a value, for so many seconds (0: forever)."""
        self.call("set", mi.encode(key), mi.encode(value), ex=lifetime_s or None)

    def get(self, space: str, key: str) -> str | None:
        """A value; None if there is none."""
        value = self.call("get", mi.encode(key))
        return None if value is None else mi.decode(value)

    def remove(self, space: str, key: str) -> None:
        """Remove a value."""
        self.call("delete", mi.encode(key))

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What Redis answers to a command; a line in the log each time it goes away or comes back, and for what it refuses."""
        from gevent import Timeout
        try:
            with Timeout(LIMIT_S, TimeoutError(f"no answer in {LIMIT_S * 1000:.0f} ms")):
                answer = getattr(self.client, name)(*arguments, **options)
        except self.refusal as error:
            self.answers()
            self.log.error("%s refuses %s: %s", self.name, name, error, extra={"once": f"{self.name} {error}"})
            raise mi.StoreError(500, str(error)) from None
        except self.errors as error:
            if not self.away:
                self.log.error("%s: %s", self.name, error)
            self.away = True
            raise mi.StoreError(500, str(error)) from None
        self.answers()
        return answer

    def answers(self) -> None:
        """Redis is there; log that if it was away."""
        if self.away:
            self.log.warning("%s answers again", self.name)
        self.away = False


@functools.lru_cache(None)
def database(place: Place, connect_s: float, query_s: float, log: Any) -> Database:
    """The database of a place, one for each child."""
    return Database(place, connect_s, query_s, log)


def cache(ctx: Any, system: str) -> Database | None:
    """The database that a cache system means, None for one of another module."""
    for place in reversed(ctx.param("cachedb_url")):
        if place.system == system:
            return database(place, ctx.param("connect_timeout") / 1000, ctx.param("query_timeout") / 1000, ctx.log)
    return None
