"""The lab's other services under their real names: each takes a token where the real one does.

`APIS` says where that is, from the services' own API references; it shares nothing with the presets
that it tests. A request whose token is the value gets 200 and the secret's name, any other gets
401 and, as careless services do, an error page that repeats what was offered.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.lab_http import header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import h11

    from tests.support.lab_http import Connection
    from tests.support.lab_vault import Vault

    Place = Callable[[h11.Request, bytes], Iterator[tuple[str, str]]]


def bearer(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    scheme, _, token = header_of(request, b"authorization").partition(" ")
    if scheme.lower() in ("bearer", "token", "bot"):
        yield "authorization", token


def basic(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    scheme, _, coded = header_of(request, b"authorization").partition(" ")
    if scheme.lower() == "basic":
        try:
            yield "password", base64.b64decode(coded).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return


def api_key(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    yield "x-api-key", header_of(request, b"x-api-key")


def bot_path(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    """https://core.telegram.org/bots/api#making-requests"""
    path = unquote(urlsplit(request.target.decode("latin-1")).path)
    for segment in path.split("/"):
        if segment.startswith("bot"):
            yield "path", segment.removeprefix("bot")


def form(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    if header_of(request, b"content-type").startswith("application/x-www-form-urlencoded"):
        for name, values in parse_qs(body.decode("latin-1")).items():
            for value in values:
                yield f"form {name}", value


def query(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    for name, values in parse_qs(urlsplit(request.target.decode("latin-1")).query).items():
        for value in values:
            yield f"query {name}", value


def document(request: h11.Request, body: bytes) -> Iterator[tuple[str, str]]:
    """The members of a JSON object."""
    if header_of(request, b"content-type").startswith("application/json"):
        for name, value in json.loads(body).items():
            yield f"json {name}", str(value)


@dataclass(frozen=True, slots=True)
class Api:
    """A host, or the names below `*.`, and the places in which its service takes a token."""

    host: str
    places: tuple[Place, ...]


APIS: Final = (
    Api("api.telegram.org", (bot_path,)),
    Api("api.github.com", (bearer, basic)),
    Api("github.com", (basic, bearer)),
    Api("api.anthropic.com", (api_key, bearer)),
    Api("api.openai.com", (bearer,)),
    Api("integrate.api.nvidia.com", (bearer,)),
    Api("ai.api.nvidia.com", (bearer,)),
    Api("api.nvcf.nvidia.com", (bearer,)),
    Api("huggingface.co", (bearer, basic)),
    Api("hf.co", (bearer,)),
    Api("graph.microsoft.com", (bearer,)),
    Api("login.microsoftonline.com", (form,)),
    Api("login.botframework.com", (form,)),
    Api("smba.trafficmanager.net", (bearer,)),
    Api("gmail.googleapis.com", (bearer,)),
    Api("oauth2.googleapis.com", (form, document, basic)),
    Api("www.googleapis.com", (bearer,)),
    Api("atlassian.net", (basic, bearer)),
    Api("api.atlassian.com", (basic, bearer)),
    Api("graph.facebook.com", (bearer, query, form)),
    # Where Slack takes files and Discord shows them: signed addresses, no token.
    Api("discordapp.com", ()),
)


class Service:
    """One of them, as a site of `lab_http.Web`."""

    def __init__(self, api: Api, vault: Vault) -> None:
        self._api = api
        self._vault = vault

    async def __call__(self, c: Connection, request: h11.Request, body: bytes) -> None:
        offered = [found for place in self._api.places for found in place(request, body)]
        for place, token in offered:
            if name := self._vault.name_of(token):
                told = {"ok": True, "secret": name, "place": place}
                await c.answer(200, json.dumps(told).encode(), "application/json")
                return
        told = {"ok": False, "error": "unauthorized", "offered": offered}
        await c.answer(401, json.dumps(told).encode(), "application/json")
