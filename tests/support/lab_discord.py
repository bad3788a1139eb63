"""The lab's Discord: the REST call and the gateway that a bot needs to come up and stay up.

A bot (its token tells bots apart) identifies on the first socket, beats twice and is told to
reconnect (op 7). The second socket, at the host that READY named, takes a RESUME and breaks off
after a beat; the third takes a RESUME and says goodbye with an event of its own. What happened is
written down as a transcript. With a vault the token must be a value of its, after `Bot ` in REST
and bare in IDENTIFY and RESUME; any other closes with 4004. Opcodes: https://discord.com/developers/docs/topics/opcodes-and-status-codes
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from tests.support.lab_ws import WebSocket

if TYPE_CHECKING:
    import h11

    from tests.support.lab_http import Connection, SeenRequests
    from tests.support.lab_vault import Vault

HOST: Final = "discord.test"
GATEWAY_HOST: Final = "gateway.discord.test"
RESUME_HOST: Final = "gateway-us-east1-b.discord.test"
LAST_EVENT: Final = "LAB_GOODBYE"
BEAT_MS: Final = 250
SESSION: Final = "session-of-the-lab"

TOKEN: Final = "DISCORD_BOT_TOKEN"
AUTHENTICATION_FAILED: Final = 4004


@dataclass(frozen=True, slots=True)
class Names:
    """The hosts of one Discord."""

    api: str = HOST
    gateway: str = GATEWAY_HOST
    resume: str = RESUME_HOST


REAL: Final = Names("discord.com", "gateway.discord.gg", "gateway-us-east1-b.discord.gg")

DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT, HELLO, ACK = 0, 1, 2, 6, 7, 10, 11
BOT: Final = {
    "id": "100000000000000001",
    "username": "lab",
    "discriminator": "0",
    "bot": True,
    "avatar": None,
    "global_name": None,
}
READY: Final = {
    "v": 10,
    "user": BOT,
    "guilds": [],
    "session_id": SESSION,
    "application": {"id": BOT["id"], "flags": 0},
}
APPLICATION: Final = {
    "id": BOT["id"],
    "name": "lab",
    "description": "",
    "icon": None,
    "flags": 0,
    "bot_public": False,
    "bot_require_code_grant": False,
    "verify_key": "",
    "owner": BOT,
}
LIMIT: Final = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 1}


class Discord:
    """Serves the hosts of `names`, and the names below them."""

    def __init__(
        self, seen: SeenRequests, names: Names | None = None, vault: Vault | None = None
    ) -> None:
        self._seen = seen
        self.names = names or Names()
        self._vault = vault
        self._opened: Counter[str] = Counter()

    async def __call__(self, c: Connection, request: h11.Request, body: bytes) -> None:
        headers = {bytes(k).lower(): v.decode("latin-1") for k, v in request.headers}
        if headers.get(b"upgrade", "").lower() == "websocket":
            packed = b"compress=zlib-stream" in request.target
            socket = await WebSocket.accept(c, request, zlib_stream=packed)
            await Gateway(self, socket, headers[b"host"]).serve()
            return
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        token = token if scheme == "Bot" else ""
        path = unquote(urlsplit(request.target.decode("latin-1")).path)
        status, answer = self._call(request.method.decode(), path, token, body)
        await c.answer(status, json.dumps(answer).encode(), "application/json")

    def _call(self, verb: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if not self.takes(token):
            return 401, {"message": "401: Unauthorized", "code": 0}
        method = path.removeprefix("/api").removeprefix("/v10")
        self.tell(token, f"{verb} {method}")
        match method:
            case "/gateway/bot":
                limit = {"shards": 1, "session_start_limit": LIMIT}
                return 200, {"url": f"wss://{self.names.gateway}", **limit}
            case "/oauth2/applications/@me":
                return 200, APPLICATION
            case "/channels/1/messages" if verb == "POST":
                return 200, {"id": "1", "content": json.loads(body)["content"]}
            case "/users/@me":
                return 200, BOT
        return 404, {"message": "404: Not Found", "code": 0}

    def takes(self, token: str) -> bool:
        return self._vault.name_of(token) == TOKEN if self._vault else token.startswith("lab-")

    def look(self, host: str, message: Any) -> None:
        if self._vault:
            self._vault.look(f"socket {host}", json.dumps(message))

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
        self.discord.look(self.host, first)
        if not self.discord.takes(token):
            await self.socket.close(AUTHENTICATION_FAILED, "Authentication failed.")
            return
        number = self.discord.opened(token)
        how = "deflated" if self.socket.was_deflated else "plain"
        name = {IDENTIFY: "IDENTIFY", RESUME: "RESUME"}.get(first["op"], f"op {first['op']}")
        self.discord.tell(token, f"{name} {how} at {self.host}")
        if first["op"] == IDENTIFY:
            await self.socket.send({"op": DISPATCH, "s": 1, "t": "READY", "d": self._ready()})
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

    def _ready(self) -> dict[str, Any]:
        return {**READY, "resume_gateway_url": f"wss://{self.discord.names.resume}"}

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
