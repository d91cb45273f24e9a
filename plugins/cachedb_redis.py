"""cachedb_redis -- cache systems that Redis has, which several servers share.

    loadmodule "cachedb_redis.so"
    modparam("cachedb_redis", "cachedb_url", "redis:group://:PASSWORD@127.0.0.1:6379/0")

`cache_store redis:group KEY VALUE 60`, cache_fetch and cache_remove are asked of Redis then, those of other systems as before.
It needs redis-py: `pip install redis`, or Debian's python3-redis.
"""
from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import re
import time
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

AGAIN_S = 0.25  # for which a server that did not answer is not asked again
IDLE = 16  # connections that rest, at most, for each child and server
FORM = '"redis:GROUP://[[USER]:PASSWORD@]HOST[:PORT]/[DB]"; without :GROUP the system is redis'
URL = re.compile(r"(redis(?::[\w.-]+)?)://(?:([^:@/]*):([^@/]*)@)?(\[[^]/]+\]|[^]:@/,\[]+)(?::([0-9]{1,5}))?(?:/([0-9]{0,4}))?")


class Place(NamedTuple):
    """A cache system, and where Redis has it."""

    system: str
    user: str | None
    password: str | None
    host: str
    port: int
    db: int


def cachedb_url(value: Any) -> Place:
    """Converter: a URL of OpenSIPS."""
    match = URL.fullmatch(mi.string(value))
    if not match or int(match[5] or 6379) not in range(1, 65536):
        raise ValueError(f"takes {FORM}")
    return Place(match[1], match[2] or None, match[3], match[4].strip("[]"), int(match[5] or 6379), int(match[6] or 0))


PARAMS = [
    mi.Param("cachedb_url", (), cachedb_url, f"cache system, and its server: {FORM}", repeat=True),
    mi.Param("query_timeout", 400, mi.integer(1, 60000), "how long a command may take, connecting included, ms"),
    mi.Param("use_tls", 0, mi.integer(0, 0), "TLS is not supported: 0"),
    *opensips.without_effect("""connect_timeout enable_raw_query_quoting ftsearch_index_name ftsearch_json_mset_expire
        ftsearch_json_prefix ftsearch_max_results lazy_connect redis_keepalive shutdown_on_error"""),
]


def init(ctx):
    """Import redis-py if it is needed, and check that no system is declared twice."""
    systems = [place.system for place in ctx.param("cachedb_url")]
    try:
        importlib.import_module("redis") if systems else None
    except ImportError:
        ctx.refuse("cachedb_url", "cachedb_redis needs redis-py: pip install redis, or apt install python3-redis")
    for nth, system in enumerate(systems):
        if system in systems[:nth]:
            ctx.refuse("cachedb_url", f'cachedb_url: there are two cache systems with the name "{system}"', nth)


###############################################################################
# A server
###############################################################################
# A connection is one request's at a time. One on which anything went wrong is closed, so no reply is taken for another's.


class Redis:
    """One database of a Redis server, as a child reaches it."""

    def __init__(self, place: Place, limit_s: float):
        self.place, self.limit_s = place, limit_s
        self.idle: collections.deque = collections.deque()
        self.away_until_s = 0.0
        self.away = False

    def connect(self) -> Any:
        """A client with a connection of its own; redis.RedisError."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        _, user, password, host, port, db = self.place
        return redis.Redis(host, port, db, password, socket_timeout=self.limit_s, socket_connect_timeout=self.limit_s,
                           username=user, retry=Retry(NoBackoff(), 0), single_connection_client=True)

    def ask(self, *words: Any) -> Any:
        """What Redis answers to a command within the time limit; redis.RedisError, OSError."""
        import gevent
        from redis import ConnectionError

        if time.monotonic() < self.away_until_s:
            raise TimeoutError("did not answer a moment ago")
        with gevent.Timeout(self.limit_s, TimeoutError("no answer in time")):
            while self.idle:
                with contextlib.suppress(ConnectionError):  # closed while it rested
                    return self.ask_on(self.idle.pop(), words)
            return self.ask_on(self.connect(), words)

    def ask_on(self, client: Any, words: tuple) -> Any:
        """What Redis answers on a connection, which rests afterwards, or is closed if that went wrong."""
        from redis import ResponseError

        fine = False
        try:
            answer = client.execute_command(*words)
            fine = True
        except ResponseError:
            fine = True
            raise
        finally:
            if fine and len(self.idle) < IDLE:
                self.idle.append(client)
            else:
                client.close()
        return answer


@functools.cache
def server_of(place: Place, limit_s: float, server: Any) -> Redis:
    """This child's connections to a server."""
    return Redis(place, limit_s)


def asked(ctx: Any, system: str, failure: str, *words: Any) -> Any:
    """What the Redis of a cache system answers; mi.Error if it does not."""
    from redis import RedisError, ResponseError

    place = next(place for place in ctx.param("cachedb_url") if place.system == system)
    redis = server_of(place, ctx.param("query_timeout") / 1000, ctx.server)
    try:
        answer = redis.ask(*words)
    except ResponseError as error:  # it is there, and does not want to
        ctx.log.warning("%s: %s", system, error)
        raise mi.Error(500, failure) from None
    except (RedisError, OSError) as error:
        if not redis.away:
            ctx.log.warning("%s: redis at %s:%d does not answer: %s", system, place.host, place.port, error)
        if time.monotonic() >= redis.away_until_s:
            redis.away, redis.away_until_s = True, time.monotonic() + AGAIN_S
        raise mi.Error(500, failure) from None
    if redis.away:
        redis.away = False
        ctx.log.info("%s: redis at %s:%d answers again", system, place.host, place.port)
    return answer


###############################################################################
# Commands
###############################################################################


def instead(original: Any) -> Any:
    """Make a function take the place of one of the core's commands, which it calls for other systems; with the same arguments."""
    tag = original.mi_command

    def replace(function: Any) -> Any:
        return mi.command(tag.name, bind=tag.bind, json=tag.json, also=tag.also, replace=True, **tag.converters)(function)

    return replace


def is_ours(ctx: Any, system: str) -> bool:
    """Whether a cache system is one of Redis'."""
    return any(place.system == system for place in ctx.param("cachedb_url"))


@instead(mi.cache_store)
def cache_store(ctx, system, attr, value, expire=0):
    """Store a value in a cache system, Redis or another, for EXPIRE seconds (0: forever)."""
    if not is_ours(ctx, system):
        return mi.cache_store(ctx, system, attr, value, expire)
    until = ("EX", expire) if expire else ()
    asked(ctx, system, "Cache store command failed", "SET", mi.encode(attr), mi.encode(value), *until)
    return mi.Reply()


@instead(mi.cache_fetch)
def cache_fetch(ctx, system, attr):
    """Fetch a value from a cache system, Redis or another."""
    if not is_ours(ctx, system):
        return mi.cache_fetch(ctx, system, attr)
    value = asked(ctx, system, "Cache fetch command failed", "GET", mi.encode(attr))
    if value is None:
        return mi.Reply(nodes=(mi.Node(None, "Value not found"),), result=mi.Error(400, "Value not found"))
    return mi.Reply(nodes=(mi.Node("key", attr), mi.Node("value", mi.decode(value))))


@instead(mi.cache_remove)
def cache_remove(ctx, system, attr):
    """Remove a value from a cache system, Redis or another."""
    if not is_ours(ctx, system):
        return mi.cache_remove(ctx, system, attr)
    asked(ctx, system, "Cache remove command failed", "DEL", mi.encode(attr))
    return mi.Reply()
