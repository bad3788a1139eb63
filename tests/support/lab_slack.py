"""The lab's Slack: as much of the Web API and of Socket Mode as a bot needs to live through a day.

An app (its token tells apps apart) gets one event on each socket it opens. After the first it is
told to reconnect, as Slack does every few hours; the second breaks off without a word; the third
stays. What happened to each app is written down as a transcript. With a vault it is strict: tokens
are the vault's values, in each place where a client shows one, and a ticket says nothing of them.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.support.lab_ws import WebSocket

if TYPE_CHECKING:
    import h11

    from tests.support.lab_http import Connection, SeenRequests
    from tests.support.lab_vault import Vault

HOST: Final = "slack.test"
SOCKET_HOSTS: Final = ("wss-primary.slack.test", "wss-backup.slack.test", "wss-primary.slack.test")
BOT: Final = {"user_id": "U0BOT", "bot_id": "B0BOT", "team_id": "T0LAB", "user": "lab-bot"}


def event_of(number: int) -> dict[str, Any]:
    message = {
        "type": "message",
        "channel": "C0LAB",
        "channel_type": "channel",
        "user": "U0HUMAN",
        "text": f"event {number}",
        "ts": f"1760000000.00000{number}",
    }
    payload = {"type": "event_callback", "team_id": "T0LAB", "api_app_id": "A0LAB"}
    return {
        "type": "events_api",
        "envelope_id": f"envelope-{number}",
        "accepts_response_payload": False,
        "payload": {**payload, "event": message, "event_id": f"Ev{number}", "authorizations": []},
    }


REAL_HOST: Final = "slack.com"
REAL_SOCKET_HOSTS: Final = tuple(host.replace(HOST, REAL_HOST) for host in SOCKET_HOSTS)
BOT_TOKEN: Final = "SLACK_BOT_TOKEN"
APP_TOKEN: Final = "SLACK_APP_TOKEN"


class Slack:
    """Serves `host` and the names below it."""

    def __init__(self, seen: SeenRequests, host: str = HOST, vault: Vault | None = None) -> None:
        self._seen = seen
        self._host = host
        self._sockets = [name.replace(HOST, host) for name in SOCKET_HOSTS]
        self._vault = vault
        self._opened: Counter[str] = Counter()
        self._tickets: dict[str, tuple[str, int]] = {}

    def _kind(self, token: str) -> str | None:
        if self._vault:
            return self._vault.name_of(token)
        return {"xoxb-": BOT_TOKEN, "xapp-": APP_TOKEN}.get(token[:5])

    def _tell(self, app: str, what: str) -> None:
        self._seen.transcripts.append((app, what))

    async def __call__(self, c: Connection, request: h11.Request, body: bytes) -> None:
        target = urlsplit(request.target.decode("latin-1"))
        headers = {bytes(k).lower(): v.decode("latin-1") for k, v in request.headers}
        if target.path == "/link/":
            ticket = parse_qs(target.query)["ticket"][0]
            app, number = self._tickets[ticket]
            await self._serve_socket(c, request, app, number)
            return
        shown = {"header": headers.get(b"authorization", "").removeprefix("Bearer ")}
        if headers.get(b"content-type", "").startswith("application/x-www-form-urlencoded"):
            shown["form"] = parse_qs(body.decode()).get("token", [""])[0]
        answer = self._call(target.path, {place: token for place, token in shown.items() if token})
        await c.answer(200, json.dumps(answer).encode(), "application/json")

    def _call(self, path: str, shown: dict[str, str]) -> dict[str, Any]:
        kinds = {self._kind(token) for token in shown.values()}
        if len(kinds) != 1 or None in kinds:
            return {"ok": False, "error": "invalid_auth" if shown else "not_authed"}
        kind, token = kinds.pop(), next(iter(shown.values()))
        by = f" by {', '.join(sorted(shown))}" if self._vault else ""
        match path.removeprefix("/api/"):
            case "auth.test" if kind == BOT_TOKEN:
                self._tell(token, f"auth.test{by}")
                return {"ok": True, "url": f"https://{self._host}/", "team": "lab", **BOT}
            case "chat.postMessage" if kind == BOT_TOKEN:
                self._tell(token, f"chat.postMessage{by}")
                return {"ok": True, "channel": "C0LAB", "ts": "1760000000.000100", "message": {}}
            case "apps.connections.open" if kind == APP_TOKEN:
                number = self._opened[token] = self._opened[token] + 1
                self._tell(token, f"open {number}{by}")
                host = self._sockets[min(number, len(self._sockets)) - 1]
                ticket = f"ticket-{len(self._tickets)}"
                self._tickets[ticket] = (token, number)
                return {"ok": True, "url": f"wss://{host}/link/?ticket={ticket}&app_id=A0"}
            case "auth.test" | "apps.connections.open":
                return {"ok": False, "error": "not_allowed_token_type"}
        return {"ok": False, "error": "unknown_method"}

    async def _serve_socket(
        self, c: Connection, request: h11.Request, app: str, number: int
    ) -> None:
        socket = await WebSocket.accept(c, request)
        info = {"app_id": "A0LAB"}
        await socket.send({"type": "hello", "num_connections": 1, "connection_info": info})
        await socket.send(event_of(number))
        ack = await socket.receive()
        self._tell(app, f"ack {ack['envelope_id'] if ack else None}")
        match number:
            case 1:
                await socket.send({"type": "disconnect", "reason": "refresh_requested"})
                await socket.until_closed()
                self._tell(app, "closed after refresh")
            case 2:
                self._tell(app, "broken off")
                socket.abort()
            case _:
                await socket.until_closed()
                self._tell(app, "closed")
