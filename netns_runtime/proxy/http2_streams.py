"""All streams of one terminated HTTP/2 connection: what each event of either side does to them.

Every request is decided anew, by the policy of that moment, then judged by the rules for its path
and given its secrets (`proxy.inspect`), and only then has it a stream upstream; one that upstream
has no room for waits, undecided. What is refused is answered and the others live on. `drain` takes
no further streams, and the connection is over when the last has ended. Nothing here waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import NoAvailableStreamIDError
from h2.settings import SettingCodes

from netns_runtime.address import AddressError, parse_authority
from netns_runtime.policy import decide
from netns_runtime.proxy.admit import record
from netns_runtime.proxy.http2_headers import Asked, parse_request
from netns_runtime.proxy.http2_limits import CLIENT_RESET, FINISHED, SERVER_RESET
from netns_runtime.proxy.http2_side import STREAMS
from netns_runtime.proxy.http2_stream import Stream
from netns_runtime.proxy.identify import fault
from netns_runtime.proxy.inspect import admit_request, judge_request
from netns_runtime.proxy.refuse import Refusal, refusal_of
from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.http2_limits import GoAway
    from netns_runtime.proxy.http2_side import Side
    from netns_runtime.proxy.inspect import Admitted
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.wire.forward import Headers

_WEB: Final = 443


class Streams:
    """`streams` by the client's numbers, `by_up` those that are open upstream by upstream's.

    Where there is no upstream, `failed` answers every request. `is_unrecorded`: the audit could not
    be written, and has to be before anything else goes upstream.
    """

    def __init__(
        self, sandbox: Sandbox, flow: Flow, down: Side, up: Side | None, failed: Refusal | None
    ) -> None:
        self.sandbox, self.flow = sandbox, flow
        self.down, self.up = down, up
        self.failed = failed
        self.streams: dict[int, Stream] = {}
        self.by_up: dict[int, Stream] = {}
        self.is_draining = self.is_unrecorded = self.has_begun = False
        self._waiting: deque[Stream] = deque()
        target = flow.target
        text = str(target)
        if target.port == _WEB:
            text = text.rpartition(":")[0]
        self.authority = text.encode("ascii")
        self._from_client: dict[type, Callable[[Any], None]] = {
            events.RequestReceived: self._request,
            events.DataReceived: self._request_content,
            events.TrailersReceived: self._request_trailers,
            events.StreamReset: self._client_reset,
            events.WindowUpdated: self._client_window,
            events.RemoteSettingsChanged: self._client_settings,
        }
        self._from_upstream: dict[type, Callable[[Any], None]] = {
            events.InformationalResponseReceived: self._informational,
            events.ResponseReceived: self._response,
            events.DataReceived: self._response_content,
            events.TrailersReceived: self._response_trailers,
            events.StreamReset: self._upstream_reset,
            events.WindowUpdated: self._upstream_window,
            events.RemoteSettingsChanged: self._upstream_settings,
        }

    def from_client(self, happened: Sequence[events.Event]) -> None:
        """What the client's frames said. Raises TooMuch."""
        resets = {event.stream_id for event in happened if isinstance(event, events.StreamReset)}
        for event in happened:
            if resets and isinstance(event, events.RequestReceived) and event.stream_id in resets:
                continue  # gone before anybody was asked
            act = self._from_client.get(type(event))
            if act is not None:
                act(event)

    def from_upstream(self, happened: Sequence[events.Event]) -> None:
        """What upstream's frames said. Raises TooMuch."""
        for event in happened:
            act = self._from_upstream.get(type(event))
            if act is not None:
                act(event)

    def start_waiting(self) -> None:
        """Decide and ask for those that upstream has room for now."""
        waiting = self._waiting
        while waiting and self._has_room():
            stream = waiting.popleft()
            if stream.number in self.streams:
                self._start(stream)

    def drain(self) -> None:
        """Take no further streams."""
        self.is_draining = True

    def upstream_goes(self, goaway: GoAway) -> None:
        """What upstream will not serve any more may be asked for again, elsewhere."""
        self.drain()
        unserved = [stream for number, stream in self.by_up.items() if number > goaway.last]
        for stream in unserved:
            stream.log_end("upstream", f"upstream is going away: {goaway.text}", goaway.code)
            stream.reset(ErrorCodes.REFUSED_STREAM)
        self._refuse_waiting()

    def upstream_lost(self, refusal: Refusal) -> None:
        """Upstream's connection ended, and with it what it had not answered."""
        self.drain()
        if self.up is not None:
            self.up.is_dead = True
        self._refuse_waiting()
        lost = list(self.by_up.values())
        self.by_up.clear()
        for stream in lost:
            stream.upstream_lost(refusal)

    def cut(self, refusal: Refusal) -> None:
        """Policy ends the flow."""
        self.drain()
        for stream in list(self.streams.values()):
            stream.cut(refusal)

    def client_lost(self, detail: str) -> None:
        """The client's connection ended, and with it whatever was open."""
        for stream in list(self.streams.values()):
            stream.log_end("sandbox", detail)
            stream.reset(ErrorCodes.CANCEL)

    def failure(self, reason: str, detail: str) -> Refusal:
        """What went wrong upstream, as the client is told."""
        target = self.flow.target
        return Refusal(
            *(reason, f"{target.host}: {detail}", ""),
            *(target.host, target.port),
            address=self.flow.address,
        )

    def gone(self, detail: str) -> Refusal:
        """Upstream's connection cannot be used."""
        return self.failure("connection_terminated", detail)

    def finished(self) -> None:
        """A stream went its usual way."""
        self.down.budget.earn(FINISHED)
        if self.up is not None:
            self.up.budget.earn(FINISHED)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft().reset(ErrorCodes.REFUSED_STREAM)

    def _has_room(self) -> bool:
        up = self.up
        if up is None or not self.by_up:
            return True
        return len(self.by_up) < up.h2.remote_settings.max_concurrent_streams

    def _request(self, event: events.RequestReceived) -> None:
        number: int = event.stream_id
        has_ended = event.stream_ended is not None
        self.has_begun = True
        if self.is_draining:
            self.down.reset(number, ErrorCodes.REFUSED_STREAM)
            return
        if len(self.streams) >= STREAMS:
            self.down.budget.spend(CLIENT_RESET, "HEADERS beyond the streams it may have open")
            self.down.reset(number, ErrorCodes.REFUSED_STREAM)
            return
        try:
            asked = parse_request(event.headers)
        except ProtocolError as error:
            self.down.budget.spend(CLIENT_RESET, "malformed HEADERS")
            stream = self.streams[number] = Stream(self, number, Asked("GET", "", (), []))
            stream.up.has_ended = has_ended
            stream.answer(Refusal("http_request_error", str(error), status_override=error.status))
            return
        stream = self.streams[number] = Stream(self, number, asked)
        stream.up.has_ended = has_ended
        if self._waiting or not self._has_room():
            self._waiting.append(stream)
        else:
            self._start(stream)

    def _start(self, stream: Stream) -> None:
        headers = [(b"host", self.authority), *stream.asked.headers]
        admitted = self._admit(stream, headers)
        if isinstance(admitted, Refusal):
            stream.answer(admitted)
            return
        try:
            stream.open_up(admitted, headers)
        except NoAvailableStreamIDError:
            self.drain()
            stream.reset(ErrorCodes.REFUSED_STREAM)

    def _admit(self, stream: Stream, headers: Headers) -> Admitted | Refusal:
        """Decide about the target, then about the request. Waits for nothing."""
        sandbox, flow, asked = self.sandbox, self.flow, stream.asked
        config = sandbox.config
        if flow.policy is not config.policy:
            flow.policy = config.policy
            flow.decision = decide(config.policy, flow.target, flow.owner)
        if not flow.decision.is_allowed and not config.report:
            return refusal_of(flow.decision, flow.target.host, flow.target.port)
        refusal = self._fault_of(asked)
        if refusal is not None:
            is_noted = refusal.reason == "host_mismatch" and asked.method != "CONNECT"
            if not (config.report and is_noted):
                return refusal
        if self.is_unrecorded:
            unrecorded = record(sandbox, flow, None)
            if unrecorded is not None:
                return unrecorded
            self.is_unrecorded = False
        act = admit_request if self.failed is None else judge_request
        admitted = act(
            *(sandbox, flow, asked.method, asked.path, headers),
            is_websocket=False,
            has_content=not stream.up.has_ended,
            is_reported=refusal is not None,
        )
        if self.failed is not None:
            return admitted if isinstance(admitted, Refusal) else self.failed
        if not isinstance(admitted, Refusal):
            stream.noted = refusal or admitted.noted or flow.noted
        return admitted

    def _fault_of(self, asked: Asked) -> Refusal | None:
        flow = self.flow
        if asked.protocol is not None:
            return Refusal(
                "http_request_error",
                "WebSocket over HTTP/2 (RFC 8441) is not carried",
                "ask for it over HTTP/1.1",
                *(flow.target.host, flow.target.port),
                status_override=501,
            )
        if asked.method == "CONNECT":
            return fault(flow, "host_mismatch", f"CONNECT inside a connection to {flow.target}")
        if not asked.authorities:
            return Refusal("http_request_error", "the request names no host")
        for authority in asked.authorities:
            if authority != self.authority and not self._is_ours(authority):
                refusal = fault(
                    flow,
                    "host_mismatch",
                    f"the connection is to {flow.target} and its request is for"
                    f" {authority.decode('latin-1')!a}",
                    "connect to the host that the request names, and allow that",
                )
                return replace(refusal, status_override=421)
        return None

    def _is_ours(self, authority: bytes) -> bool:
        target = self.flow.target
        try:
            return parse_authority(authority.decode("latin-1"), target.port) == target
        except AddressError:
            return False

    def _request_content(self, event: events.DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.request_content(
                event.data or b"",
                event.flow_controlled_length or 0,
                ended=event.stream_ended is not None,
            )

    def _request_trailers(self, event: events.TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.request_ended(event.headers)

    def _client_reset(self, event: events.StreamReset) -> None:
        if not event.remote_reset:
            self.down.budget.spend(CLIENT_RESET, "malformed")
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.cancelled(int(event.error_code or 0))

    def _client_window(self, event: events.WindowUpdated) -> None:
        if not event.stream_id:
            self.down.opened()
        elif (stream := self.streams.get(event.stream_id)) is not None:
            self.down.queue(stream.down)

    def _client_settings(self, event: events.RemoteSettingsChanged) -> None:
        self.down.settings_changed()
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            for stream in self.streams.values():
                self.down.queue(stream.down)

    def _informational(self, event: events.InformationalResponseReceived) -> None:
        stream = self.by_up.get(event.stream_id)
        if stream is not None:
            assert self.up is not None
            self.up.budget.spend(SERVER_RESET, "1xx HEADERS")
            stream.informational(event.headers)

    def _response(self, event: events.ResponseReceived) -> None:
        stream = self.by_up.get(event.stream_id)
        if stream is not None:
            stream.response(event.headers, ended=event.stream_ended is not None)

    def _response_content(self, event: events.DataReceived) -> None:
        stream = self.by_up.get(event.stream_id)
        if stream is not None:
            stream.response_content(
                event.data or b"",
                event.flow_controlled_length or 0,
                ended=event.stream_ended is not None,
            )

    def _response_trailers(self, event: events.TrailersReceived) -> None:
        stream = self.by_up.get(event.stream_id)
        if stream is not None:
            stream.response_ended(event.headers)

    def _upstream_reset(self, event: events.StreamReset) -> None:
        stream = self.by_up.get(event.stream_id)
        if stream is not None:
            stream.reset_by_upstream(int(event.error_code or 0))

    def _upstream_window(self, event: events.WindowUpdated) -> None:
        assert self.up is not None
        if not event.stream_id:
            self.up.opened()
        elif (stream := self.by_up.get(event.stream_id)) is not None:
            self.up.queue(stream.up)

    def _upstream_settings(self, event: events.RemoteSettingsChanged) -> None:
        assert self.up is not None
        self.up.settings_changed()
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            for stream in self.by_up.values():
                self.up.queue(stream.up)
