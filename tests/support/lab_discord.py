"""The lab's Discord: the REST call and the gateway that a bot needs to come up and stay up.

A bot (its token tells bots apart) identifies on the first socket, beats twice and is told to
reconnect (op 7). The second socket, at the host that READY named, takes a RESUME and breaks off
after a beat; the third takes a RESUME and says goodbye with an event of its own. What happened is
written down as a transcript. Opcodes: https://discord.com/developers/docs/topics/opcodes-and-status-codes
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from tests.support.lab_ws import WebSocket

if TYPE_CHECKING:
    import h11

    from tests.support.lab_http import Connection, SeenRequests

HOST: Final = "discord.test"
GATEWAY_HOST: Final = "gateway.discord.test"
RESUME_HOST: Final = "gateway-us-east1-b.discord.test"
LAST_EVENT: Final = "LAB_GOODBYE"
BEAT_MS: Final = 250
SESSION: Final = "session-of-the-lab"

DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT, HELLO, ACK = 0, 1, 2, 6, 7, 10, 11
BOT: Final = {"id": "100000000000000001", "username": "lab", "discriminator": "0", "bot": True}
READY: Final = {
    "v": 10,
    "user": {**BOT, "avatar": None},
    "guilds": [],
    "session_id": SESSION,
    "resume_gateway_url": f"wss://{RESUME_HOST}",
    "application": {"id": BOT["id"], "flags": 0},
}
LIMIT: Final = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 1}


class Discord:
    """Serves `HOST` and the names below it."""

    def __init__(self, seen: SeenRequests) -> None:
        self._seen = seen
        self._opened: Counter[str] = Counter()

    async def __call__(self, c: Connection, request: h11.Request, body: bytes) -> None:
        headers = {bytes(k).lower(): v.decode("latin-1") for k, v in request.headers}
        if headers.get(b"upgrade", "").lower() == "websocket":
            host = headers[b"host"]
            await Gateway(self, await WebSocket.accept(c, request), host).serve()
            return
        token = headers.get(b"authorization", "").removeprefix("Bot ")
        path = unquote(urlsplit(request.target.decode("latin-1")).path)
        status, answer = self._call(path, token)
        await c.answer(status, json.dumps(answer).encode(), "application/json")

    def _call(self, path: str, token: str) -> tuple[int, dict[str, Any]]:
        if not token.startswith("lab-"):
            return 401, {"message": "401: Unauthorized", "code": 0}
        method = path.removeprefix("/api").removeprefix("/v10")
        self.tell(token, f"GET {method}")
        match method:
            case "/gateway/bot":
                limit = {"shards": 1, "session_start_limit": LIMIT}
                return 200, {"url": f"wss://{GATEWAY_HOST}", **limit}
            case "/users/@me":
                return 200, BOT
        return 404, {"message": "404: Not Found", "code": 0}

    def tell(self, token: str, what: str) -> None:
        self._seen.transcripts.append((token, what))

    def opened(self, token: str) -> int:
        self._opened[token] += 1
        return self._opened[token]


class Gateway:
    """One socket of the gateway."""

    def __init__(self, discord: Discord, socket: WebSocket, host: str) -> None:
        self.discord = discord
        self.socket = socket
        self.host = host

    async def serve(self) -> None:
        await self.socket.send({"op": HELLO, "d": {"heartbeat_interval": BEAT_MS}})
        first = await self._past_beats("")
        if first is None:
            return
        token = first["d"]["token"]
        number = self.discord.opened(token)
        how = "deflated" if self.socket.was_deflated else "plain"
        name = {IDENTIFY: "IDENTIFY", RESUME: "RESUME"}.get(first["op"], f"op {first['op']}")
        self.discord.tell(token, f"{name} {how} at {self.host}")
        if first["op"] == IDENTIFY:
            await self.socket.send({"op": DISPATCH, "s": 1, "t": "READY", "d": READY})
        elif first["op"] == RESUME and first["d"]["session_id"] == SESSION:
            seq = first["d"]["seq"] + 1
            await self.socket.send({"op": DISPATCH, "s": seq, "t": "RESUMED", "d": {}})
        await self._beats(token, 2 if number == 1 else 1)
        match number:
            case 1:
                await self.socket.send({"op": RECONNECT, "d": None})
                await self._past_beats(token)
                self.discord.tell(token, "closed after RECONNECT")
            case 2:
                self.discord.tell(token, "broken off")
                self.socket.abort()
            case _:
                await self.socket.send({"op": DISPATCH, "s": 99, "t": LAST_EVENT, "d": {}})
                await self._past_beats(token)
                self.discord.tell(token, "closed")

    async def _beat(self, token: str) -> None:
        await self.socket.send({"op": ACK})
        if token:
            self.discord.tell(token, "HEARTBEAT")

    async def _beats(self, token: str, count: int) -> None:
        """Answer so many heartbeats."""
        while count > 0 and (message := await self.socket.receive()) is not None:
            if message["op"] == HEARTBEAT:
                await self._beat(token)
                count -= 1

    async def _past_beats(self, token: str) -> Any:
        """Answer heartbeats until something else comes; None at the end."""
        while (message := await self.socket.receive()) is not None:
            if message["op"] != HEARTBEAT:
                return message
            await self._beat(token)
        return None
