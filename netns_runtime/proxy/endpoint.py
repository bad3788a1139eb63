"""The secrets' endpoint: `GET /secrets/v1/NAME` on the explicit port, for those who may read.

It exists only for secrets with `expose: endpoint`. Who asks must show the sandbox's token and be
one of the binding's executables, as the kernel recorded it when the connection was made; whom the
kernel did not record is refused. Every read and every refusal is one audit line, written before the
value leaves; report mode lifts nothing here. Ends with an answer and the connection's end.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime import layout
from netns_runtime.audit import AuditError
from netns_runtime.policy.decision import owner_fault
from netns_runtime.proxy.admit import LINGER, linger
from netns_runtime.proxy.flow import owner_fields
from netns_runtime.proxy.refuse import Refusal, response_of

if TYPE_CHECKING:
    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.secret import Secret
    from netns_runtime.wire.head import RequestHead

SLOT: Final = "endpoint"
_AUTHORITY: Final = f"{layout.GATEWAY_IPV4}:{layout.PROXY_PORT}"
# Origin form, or absolute as a client with a proxy asks. Only our own authority is meant.
_TARGET: Final = re.compile(rf"(?:http://{re.escape(_AUTHORITY)})?/secrets/(.*)", re.IGNORECASE)
_NAME: Final = re.compile(r"v1/([A-Za-z_][A-Za-z0-9_]{0,127})")


def asks_for_secret(head: RequestHead) -> bool:
    """Whether the request is for the endpoint and not for a proxy."""
    return head.method != "CONNECT" and _TARGET.fullmatch(head.target) is not None


async def serve_secret(sandbox: Sandbox, client: Client, head: RequestHead) -> None:
    """Answer one request for which `asks_for_secret` holds, and end the connection."""
    answer = answer_of(sandbox, client, head)
    if isinstance(answer, Refusal):
        data = response_of(answer, head)
        if answer.status == 401:
            data = data.replace(b"\r\n", b"\r\nWWW-Authenticate: Bearer\r\n", 1)
    else:
        body = answer.value.encode("utf-8")
        data = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
            % len(body)
        ) + body
    with trio.move_on_after(LINGER):
        await client.peer.send(data)
        if client.reader or head.has_body:
            await linger(client)


def answer_of(sandbox: Sandbox, client: Client, head: RequestHead) -> Secret | Refusal:
    """Decide and write the audit line. A value is given only where that line was written."""
    match = _TARGET.fullmatch(head.target)
    named = _NAME.fullmatch(match[1]) if match is not None else None
    name = named[1] if named is not None else None
    outcome = _judge(sandbox, client, head, name)
    refused = isinstance(outcome, Refusal)
    fields = {
        **owner_fields(client.owner),
        "entry": client.entry,
        "secret": name,
        "slot": SLOT,
        "action": "refuse" if refused else "allow",
        "rule": outcome.rule if isinstance(outcome, Refusal) else outcome.binding.text,
    }
    if isinstance(outcome, Refusal):
        fields |= {
            "status": outcome.status,
            "reason": outcome.reason,
            "said_by": outcome.said_by,
            "detail": outcome.detail,
            "remedy": outcome.remedy or None,
        }
    try:
        sandbox.audit.write("secret.withheld" if refused else "secret.substituted", **fields)
    except AuditError as error:
        sandbox.report(f"the endpoint of secrets: {error}")
        why = f"the audit cannot be written, and no value is read without a record: {error}"
        return Refusal("proxy_internal_error", why, status_override=503)
    return outcome


def _judge(
    sandbox: Sandbox, client: Client, head: RequestHead, name: str | None
) -> Secret | Refusal:
    """1. some secret is exposed here; 2. the token; 3. the name; 4. GET; 5. the executable."""
    config = sandbox.config
    if not config.secrets_token:
        return _mistake(404, "no secret of this sandbox has `expose: endpoint`")
    if not _has_token(head, config.secrets_token):
        return _mistake(
            401,
            "the endpoint of secrets takes this sandbox's token",
            "send `Authorization: Bearer $NETNS_SECRETS_TOKEN`",
        )
    readers = dict(config.readers)
    found = [secret for secret in config.secrets if secret.name == name and name in readers]
    if not found:
        return _mistake(
            404,
            f"no secret {name} has `expose: endpoint`" if name else "the path names no secret",
            "ask for $NETNS_SECRETS_URL/NAME",
        )
    if head.method != "GET":
        return _mistake(405, "a secret is read with GET")
    fault = owner_fault(readers[found[0].name], client.owner)
    if fault is not None:
        remedy = f"list the executable in `binaries` of {found[0].binding.text}"
        if sandbox.owners is None:
            remedy = "executables are known only with the probe: see netns-debug doctor"
        return Refusal(
            "http_request_denied",
            f"{name} may not be read by this process: {fault}",
            remedy,
            rule=found[0].binding.text,
        )
    return found[0]


def _has_token(head: RequestHead, token: str) -> bool:
    given = head.values(b"authorization")
    scheme, _, shown = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return hmac.compare_digest(shown.strip(), token.encode("ascii")) and scheme.lower() == b"bearer"


def _mistake(status: int, detail: str, remedy: str = "") -> Refusal:
    return Refusal("http_request_error", detail, remedy, status_override=status)
