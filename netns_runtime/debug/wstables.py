"""What is known of the ways a WebSocket fails: status codes, close codes, hops' idle limits.

Tables only. A `Cause` is what usually lies behind something and what to do; who ended it and the
evidence are `wsexplain`'s. Close codes are RFC 6455's and IANA's, statuses RFC 9110's; the meaning
of 4000 to 4999 is each service's own, and only those are here that it publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Cause:
    """`name` is a few words for the code; `usually` and `do` are sentences."""

    name: str
    usually: str
    do: str


STATUSES: Final[dict[int, Cause]] = {
    200: Cause(
        "the upgrade was ignored",
        "the path is no WebSocket endpoint, or a hop before the server drops Upgrade",
        "check the path; let that hop pass Upgrade and Connection on",
    ),
    301: Cause(
        "moved",
        "the endpoint is elsewhere; WebSocket clients as a rule follow no redirect",
        "connect to the address that Location names, and allow its host",
    ),
    400: Cause(
        "a bad request",
        "a missing or malformed header of the handshake, a missing parameter in the URL, or a "
        "server that speaks plain HTTP alone there",
        "compare the URL and the headers with the service's documentation",
    ),
    401: Cause(
        "not authenticated",
        "the token is missing, expired or for another audience",
        "give a valid token; where it is a secret of this sandbox, check its binding and slot",
    ),
    403: Cause(
        "forbidden",
        "the token lacks the permission, or the server does not take this Origin or this address",
        "check the token's permissions, and the Origin that the client sends",
    ),
    404: Cause(
        "no such endpoint",
        "the path is wrong, or the ticket in the URL has been used or has expired",
        "check the path, or ask the service for a fresh URL",
    ),
    405: Cause(
        "method not allowed",
        "there is an HTTP endpoint at this path and no WebSocket",
        "check the path",
    ),
    407: Cause(
        "a proxy wants credentials",
        "another proxy stands between this one and the server",
        "give that proxy's credentials, or take it out of the way",
    ),
    408: Cause(
        "the server waited too long",
        "the client sent its handshake too slowly",
        "see whether the client is starved, then try again",
    ),
    426: Cause(
        "another version or protocol is wanted",
        "the server wants another Sec-WebSocket-Version, a subprotocol, or HTTP/1.1",
        "use the version that the answer names, or a newer client",
    ),
    429: Cause(
        "too many connections or requests",
        "the service limits how often, or how many at once, this token or address may connect",
        "wait as long as the answer says, and reconnect with growing pauses",
    ),
    431: Cause(
        "headers too large",
        "cookies or tokens are longer than the server takes",
        "send fewer or shorter headers",
    ),
    500: Cause(
        "the server failed",
        "a fault in the server's own code as it took the connection",
        "try again later; if it stays so, tell the service's owner",
    ),
    501: Cause(
        "not implemented",
        "the server, or a hop before it, does not do WebSocket",
        "use another endpoint, or the service's HTTP interface",
    ),
    502: Cause(
        "a bad gateway",
        "a balancer before the server got no proper answer from it",
        "try again later; the server behind the balancer is down or speaks no WebSocket",
    ),
    503: Cause(
        "not available",
        "the server is overloaded, is being deployed, or has no room for more connections",
        "wait as long as the answer says, and reconnect with growing pauses",
    ),
    504: Cause(
        "a gateway's timeout",
        "a balancer before the server waited for it in vain",
        "try again later",
    ),
}
FAMILIES: Final[dict[int, Cause]] = {
    2: STATUSES[200],
    3: STATUSES[301],
    4: STATUSES[400],
    5: STATUSES[500],
}

CODES: Final[dict[int, Cause]] = {
    1000: Cause("normal closure", "its work was done", "nothing; reconnect if more is wanted"),
    1001: Cause(
        "going away",
        "a server that restarts or is being deployed, or a client that ends",
        "reconnect",
    ),
    1002: Cause(
        "protocol error",
        "what the other side sent is not RFC 6455: a wrong mask, opcode, length or reserved bit, "
        "often a library that is old or a hop that alters frames",
        "update the library of the side that sent it; look for a hop that rewrites frames",
    ),
    1003: Cause(
        "unsupported data",
        "a binary message where text is expected, or the other way round",
        "send the kind of message that the other side documents",
    ),
    1005: Cause(
        "no code given", "a close without a reason, as a plain close() sends", "nothing as a rule"
    ),
    1006: Cause(
        "abnormal closure",
        "the connection was cut without a close frame: a crash, a kill, a restart, or a hop that "
        "dropped it",
        "reconnect with growing pauses; see the log of the side that cut it",
    ),
    1007: Cause(
        "invalid data",
        "a text message of the other side is not UTF-8 (or not of the type that was agreed)",
        "send binary data in binary messages, or encode the text",
    ),
    1008: Cause(
        "policy violation",
        "the peer does not take what was sent, or who sent it: a missing permission, a rule, a "
        "rate",
        "read the reason beside the code; correct what it names",
    ),
    1009: Cause(
        "message too big",
        "a message is longer than the limit of the side that closed",
        "send smaller messages, or raise that side's limit",
    ),
    1010: Cause(
        "an extension is missing",
        "the client needs an extension that the server did not take",
        "turn the extension on at the server, or off in the client",
    ),
    1011: Cause(
        "internal error",
        "a fault in the code of the side that closed; Python's websockets also says 1011 where "
        "no pong came in time",
        "see the log of the side that closed; reconnect with growing pauses",
    ),
    1012: Cause("service restart", "the server restarts", "reconnect after some seconds"),
    1013: Cause(
        "try again later", "the server is overloaded", "reconnect with growing, random pauses"
    ),
    1014: Cause(
        "bad gateway",
        "a gateway on the way got no proper answer from the server behind it",
        "reconnect later; look at the server behind that gateway",
    ),
}

RESERVED: Final = Cause(
    "a code without a meaning",
    "a code that nobody has registered (3000 to 3999 are libraries' and frameworks' own)",
    "look it up in the documentation of the library at the side that closed",
)
APPLICATION: Final = Cause(
    "the service's own code",
    "what 4000 to 4999 mean is said in the service's documentation alone",
    "look the code up there; the reason beside it, if there is one, is the service's too",
)

_DISCORD: Final[dict[int, Cause]] = {
    4000: Cause("unknown error", "something went wrong at Discord", "reconnect and resume"),
    4001: Cause("unknown opcode", "an opcode the gateway does not know", "update the library"),
    4002: Cause("decode error", "a payload that is no valid JSON or ETF", "correct what is sent"),
    4003: Cause("not authenticated", "a payload was sent before IDENTIFY", "identify first"),
    4004: Cause(
        "authentication failed",
        "the token sent with IDENTIFY is not valid, or a placeholder was sent in its place",
        "give a valid token; with --secret, see that its slot is websocket /d/token for this host",
    ),
    4005: Cause("already authenticated", "IDENTIFY was sent twice", "identify once"),
    4007: Cause("invalid sequence", "RESUME named a wrong sequence", "identify anew"),
    4008: Cause(
        "rate limited", "more than 120 payloads a minute", "send more slowly, then reconnect"
    ),
    4009: Cause(
        "timed out", "the gateway dropped it for being quiet", "reconnect and identify anew"
    ),
    4010: Cause("invalid shard", "a wrong shard was named", "correct the shard"),
    4011: Cause("sharding required", "too many guilds for one connection", "shard"),
    4012: Cause("invalid API version", "the gateway's version is gone", "update the library"),
    4013: Cause("invalid intents", "intents that do not exist", "correct the intents"),
    4014: Cause(
        "disallowed intents",
        "intents that are not turned on for this bot",
        "turn them on in the developer portal",
    ),
}
_GRAPHQL: Final[dict[int, Cause]] = {
    4400: Cause("bad request", "a message that is no GraphQL-WS", "correct what is sent"),
    4401: Cause(
        "unauthorized", "subscribed before connection_init was taken", "authenticate first"
    ),
    4403: Cause("forbidden", "connection_init was refused", "check the token in its payload"),
    4406: Cause("subprotocol not acceptable", "client and server share none", "update one of them"),
    4408: Cause("initialisation timeout", "connection_init came too late", "send it at once"),
    4409: Cause("subscriber exists", "an id was used twice", "use unique ids"),
    4429: Cause("too many initialisations", "connection_init came twice", "send it once"),
}

# Like HTTP's statuses: many services number so, none has to.
_HINTED: Final = frozenset({4400, 4401, 4403, 4404, 4408, 4429, 4500, 4503})


def cause_of(code: int, host: str = "", chosen: str | None = None) -> Cause:
    """What a close code means; `chosen` is the subprotocol."""
    if 4000 <= code < 5000:
        return application_cause(code, host, chosen)
    return CODES.get(code, RESERVED)


def application_cause(code: int, host: str, chosen: str | None) -> Cause:
    """What 4000 to 4999 mean, as far as the host or the subprotocol says."""
    if host in ("gateway.discord.gg", "discord.gg") or host.endswith(".discord.gg"):
        return _DISCORD.get(code, APPLICATION)
    if chosen == "graphql-transport-ws":
        return _GRAPHQL.get(code, APPLICATION)
    if code in _HINTED:
        return Cause(
            APPLICATION.name,
            f"{APPLICATION.usually}; many number them like HTTP's {code - 4000}",
            APPLICATION.do,
        )
    return APPLICATION


# Defaults that the makers document: seconds of silence after which the hop ends a connection.
IDLE_LIMITS: Final[tuple[tuple[float, str], ...]] = (
    (30, "30 s is the default backend timeout of Google's load balancers"),
    (55, "55 s is the limit of Heroku's router"),
    (60, "60 s is the default of nginx (proxy_read_timeout) and of AWS's application balancer"),
    (100, "100 s is the limit of Cloudflare's proxy"),
    (240, "240 s is the default of Azure's load balancer"),
    (350, "350 s is the default of AWS's network balancer"),
    (600, "600 s is the limit of Google's connection tracking"),
    (3600, "3600 s is a common setting of nginx and HAProxy for WebSocket"),
)


def hop_of(idle: float) -> str | None:
    """Whose default the silence equals, within 2 % and a second."""
    return next(
        (text for limit, text in IDLE_LIMITS if abs(idle - limit) <= max(1.0, limit * 0.02)), None
    )
