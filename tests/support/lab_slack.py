"""The lab's Slack: as much of the Web API and of Socket Mode as a bot needs to live through a day.

An app (its token tells apps apart) gets one event on each socket it opens. After the first it is
told to reconnect, as Slack does every few hours; the second breaks off without a word; the third
stays. What happened to each app is written down as a transcript.
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


class Slack:
    """Serves `HOST` and the names below it."""

    def __init__(self, seen: SeenRequests) -> None:
        self._seen = seen
        self._opened: Counter[str] = Counter()

    def _tell(self, app: str, what: str) -> None:
        self._seen.transcripts.append((app, what))

    async def __call__(self, c: Connection, request: h11.Request, body: bytes) -> None:
        target = urlsplit(request.target.decode("latin-1"))
        headers = {bytes(k).lower(): v.decode("latin-1") for k, v in request.headers}
        if target.path == "/link/":
            ticket = parse_qs(target.query)["ticket"][0]
            app, _, number = ticket.rpartition(".")
            await self._serve_socket(c, request, app, int(number))
            return
        token = headers.get(b"authorization", "").removeprefix("Bearer ")
        answer = self._call(target.path, token)
        await c.answer(200, json.dumps(answer).encode(), "application/json")

    def _call(self, path: str, token: str) -> dict[str, Any]:
        match path.removeprefix("/api/"):
            case "auth.test" if token.startswith("xoxb-"):
                self._tell(token, "auth.test")
                return {"ok": True, "url": f"https://{HOST}/", "team": "lab", **BOT}
            case "apps.connections.open" if token.startswith("xapp-"):
                number = self._opened[token] = self._opened[token] + 1
                self._tell(token, f"open {number}")
                host = SOCKET_HOSTS[min(number, len(SOCKET_HOSTS)) - 1]
                return {"ok": True, "url": f"wss://{host}/link/?ticket={token}.{number}&app_id=A0"}
            case "auth.test" | "apps.connections.open":
                return {"ok": False, "error": "invalid_auth"}
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
