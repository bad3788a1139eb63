"""One request over HTTP/2 and its response: a stream of the client's and the one upstream for it.

A `Stream` is what its two lanes and its audit line have in common. It ends when both sides have
said END_STREAM, or when one of them, or we, reset it; `answer` is our own response in place of
upstream's, `fail` that or, where the response has begun, a reset. It waits for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from h2.errors import ErrorCodes

from netns_runtime.audit import AuditError
from netns_runtime.proxy.http2_headers import (
    Asked,
    parse_response,
    parse_trailers,
    request_list,
    sensitive,
)
from netns_runtime.proxy.http2_lane import Lane
from netns_runtime.proxy.http2_limits import name_of
from netns_runtime.proxy.http2_side import Turn
from netns_runtime.proxy.inspect import shown_of, write_body_hits
from netns_runtime.proxy.refuse import Refusal, response_of
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.head import RequestHead
from netns_runtime.wire.mask import mask_headers
from netns_runtime.wire.response import response_masker

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.proxy.http2_streams import Streams
    from netns_runtime.proxy.inspect import Admitted
    from netns_runtime.wire.forward import Headers

T = TypeVar("T")

_NO_CONTENT: Final = frozenset({204, 304})


class Stream:
    """`number` is the client's, `up_number` upstream's, 0 before it is open there.

    `up` carries the request's content, `down` the response's. `is_open_up`: upstream has a stream
    that is not closed on both sides.
    """

    __slots__ = (
        *("_code", "_is_answered", "_is_bare", "_is_logged", "_is_ours", "_response_ended"),
        *("admitted", "all", "asked", "down", "is_open_up", "noted", "number", "started"),
        *("up", "up_number"),
    )

    def __init__(self, streams: Streams, number: int, asked: Asked) -> None:
        self.all = streams
        self.number = number
        self.asked = asked
        self.admitted: Admitted | None = None
        self.noted: Refusal | None = None
        self.up_number = 0
        self._code = int(ErrorCodes.NO_ERROR)
        self.is_open_up = False
        self.started = trio.current_time()
        self._is_answered = self._is_logged = self._is_ours = self._response_ended = False
        self._is_bare = False
        client, upstream = streams.down, streams.up or streams.down
        self.up = Lane(client, number, upstream, self._request_sent, self._bad_request)
        self.down = Lane(upstream, 0, client, self._response_sent, self._bad_response)
        self.down.sink_id = number

    def open_up(self, admitted: Admitted, was: Headers) -> None:
        """Ask upstream. `was` are the headers that were judged."""
        self.admitted = admitted
        streams, lane = self.all, self.up
        upstream = lane.sink
        headers = admitted.headers
        body = admitted.body
        if body is not None and not lane.has_ended:
            lane.rewriter, lane.written = body, self._is_written
            if body.may_change:
                headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        fields = request_list(self.asked, streams.authority, admitted.target, headers, was)
        number = upstream.h2.get_next_available_stream_id()
        ends = lane.has_ended and lane.is_empty and lane.trailers is None
        if not upstream.send_headers(number, fields, end=ends):
            self.fail(streams.gone("it takes no more streams"))
            return
        self.up_number = lane.sink_id = self.down.source_id = number
        self.is_open_up = True
        streams.by_up[number] = self
        if ends:
            lane.is_done = True
        elif lane.has_ended or not lane.is_empty:
            upstream.queue(lane)

    def request_content(self, data: bytes, flow_length: int, *, ended: bool) -> None:
        """What the client sent."""
        self.up.receive(data, flow_length)
        if ended:
            self.request_ended(None)
        elif self.up.sink_id:
            self.up.sink.queue(self.up)

    def request_ended(self, trailers: Headers | None) -> None:
        """The client's END_STREAM."""
        if self.up.is_done:
            self.up.has_ended = True
            self._close()
            return
        if trailers is not None:
            try:
                trailers = parse_trailers(trailers)
            except ProtocolError as error:
                self._bad_request(error)
                return
        self.up.end(trailers)
        if self.up.sink_id:
            self.up.sink.queue(self.up)

    def informational(self, fields: Headers) -> None:
        """A 1xx response."""
        try:
            status, headers = self._read(parse_response, fields)
        except ProtocolError as error:
            self._bad_response(error)
            return
        self._send_head(status, self._masked(headers), end=False)

    def response(self, fields: Headers, *, ended: bool) -> None:
        """The response's head."""
        try:
            status, headers = self._read(parse_response, fields)
            self._is_bare = self.asked.method == "HEAD" or status in _NO_CONTENT
            has_content = not ended and not self._is_bare
            if has_content and self.admitted is not None and self.admitted.bound:
                masker = response_masker(headers, self.admitted.bound)
                headers = masker.headers
                if masker.may_change:
                    self.down.rewriter = masker
            else:
                headers = self._masked(headers)
        except ProtocolError as error:
            self._bad_response(error)
            return
        self.log(status)
        self._is_answered = True
        self._send_head(status, headers, end=ended)
        if ended:
            self.down.has_ended = self.down.is_done = True
            self._response_came()
            self._close()

    def response_content(self, data: bytes, flow_length: int, *, ended: bool) -> None:
        """What upstream sent."""
        self.down.receive(data, flow_length)
        if data and self._is_bare:
            self._bad_response(ProtocolError("content in a response that has none", status=502))
            return
        if ended:
            self.response_ended(None)
        else:
            self.down.sink.queue(self.down)

    def response_ended(self, trailers: Headers | None) -> None:
        """Upstream's END_STREAM."""
        if trailers is not None:
            try:
                trailers = self._masked(self._read(parse_trailers, trailers))
            except ProtocolError as error:
                self._bad_response(error)
                return
        self.down.end(trailers)
        self.down.sink.queue(self.down)
        self._response_came()

    def cancelled(self, code: int) -> None:
        """The client reset it."""
        self.log_end("sandbox", f"the client reset the stream: {name_of(code)}", code)
        self._close_up(code)
        self._forget()

    def reset_by_upstream(self, code: int) -> None:
        """Upstream reset it: so do we, after what came before."""
        self._closed_up()
        self.up.drop()
        self._code = code
        if self._response_ended:
            self._close()
            return
        self.log_end("upstream", f"upstream reset the stream: {name_of(code)}", code)
        while self.down.send() is Turn.AGAIN:
            pass
        self.reset(code)

    def reset(self, code: int) -> None:
        """Reset it at the client, and at upstream."""
        self.all.down.reset(self.number, code)
        self._close_up(code)
        self._forget()

    def answer(self, refusal: Refusal) -> None:
        """Respond in place of upstream, and hear nothing more of the request."""
        self.log(refusal.status, refusal)
        self._close_up(ErrorCodes.CANCEL)
        self._is_answered = self._is_ours = True
        head = RequestHead(self.asked.method, "", (1, 1), tuple(self.asked.headers), b"")
        lines, _, body = response_of(refusal, head).partition(b"\r\n\r\n")
        headers: Headers = []
        for line in lines.split(b"\r\n")[1:]:
            name, _, value = line.partition(b": ")
            if name != b"Connection":
                headers.append((name.lower(), value))
        self._send_head(refusal.status, headers, end=not body)
        if body:
            self.down.put(body)
            self.down.sink.queue(self.down)
        else:
            self.down.is_done = True
            self._response_sent()

    def fail(self, refusal: Refusal) -> None:
        """What can still be told of a stream that cannot go on."""
        if self._is_answered:
            self.reset(ErrorCodes.INTERNAL_ERROR)
        else:
            self.down.drop()
            self.down.is_done = False
            self.answer(refusal)

    def upstream_lost(self, refusal: Refusal) -> None:
        """Upstream's connection ended. A response that is whole is still the client's."""
        self.is_open_up = False
        self.up.drop()
        if self._response_ended:
            self._close()
        else:
            self.fail(refusal)

    def cut(self, refusal: Refusal) -> None:
        """Policy ends the flow."""
        if not self._is_ours:
            self.fail(refusal)

    def log(self, status: int, refusal: Refusal | None = None) -> None:
        """Write `http.request`, once."""
        noted = self.noted
        if refusal is None and not self._is_logged:
            self.all.sandbox.tallies.took("response", trio.current_time() - self.started)
        fields: dict[str, Any] = {"status": status, "action": "allow", "said_by": "upstream"}
        if refusal is not None:
            fields |= {"said_by": refusal.said_by, "reason": refusal.reason}
            if refusal.said_by == "policy":
                fields |= {"action": "refuse", "rule": refusal.rule}
            fields |= {"detail": refusal.detail, "remedy": refusal.remedy or None}
        elif noted is not None:
            fields |= {"reason": noted.reason, "detail": f"would be refused: {noted.detail}"}
            fields["remedy"] = noted.remedy or None
        self._write(fields)

    def log_end(self, said_by: str, detail: str, code: int | None = None) -> None:
        """Write `http.request` of a stream that ended without a response."""
        fields: dict[str, Any] = {"action": "allow", "said_by": said_by, "detail": detail}
        fields |= {"reason": "connection_terminated", "code": code}
        self._write(fields)

    def _write(self, fields: dict[str, Any]) -> None:
        if self._is_logged:
            return
        self._is_logged = True
        streams, admitted = self.all, self.admitted
        sandbox, flow = streams.sandbox, streams.flow
        common = flow.fields()
        common |= {
            "method": self.asked.method,
            "path": admitted.shown if admitted else shown_of(sandbox, self.asked.path),
            "rule": admitted.rule if admitted else flow.decision.rule,
        }
        try:
            sandbox.audit.write("http.request", **(common | fields))
        except AuditError as error:
            streams.is_unrecorded = True
            sandbox.report(f"flow {flow.id}: {error}")

    def _send_head(self, status: int, headers: Headers, *, end: bool) -> None:
        fields = [(b":status", b"%d" % status), *sensitive(headers)]
        self.all.down.send_headers(self.number, fields, end=end)

    def _read(self, parse: Callable[[Headers], T], fields: Headers) -> T:
        try:
            return parse(fields)
        except ProtocolError as error:
            if self.admitted is None or not self.admitted.bound:
                raise
            # What upstream wrote may hold a value; the text quotes it.
            raise ProtocolError("its headers are malformed", status=error.status) from None

    def _masked(self, headers: Headers) -> Headers:
        if self.admitted is None or not self.admitted.bound:
            return headers
        return mask_headers(headers, self.admitted.bound)

    def _is_written(self) -> bool:
        streams = self.all
        assert self.admitted is not None
        refusal = write_body_hits(streams.sandbox, streams.flow, self.admitted)
        if refusal is not None:
            self.fail(refusal)
        return refusal is None

    def _bad_request(self, error: ProtocolError) -> None:
        detail = f"the request's content: {error}"
        self.fail(Refusal("http_request_error", detail, status_override=error.status))

    def _bad_response(self, error: ProtocolError) -> None:
        self.fail(self.all.failure("http_protocol_error", str(error)))

    def _request_sent(self) -> None:
        if self._response_ended:
            self._closed_up()
        self._close()

    def _response_came(self) -> None:
        self._response_ended = True
        if self.up.is_done:
            self._closed_up()

    def _response_sent(self) -> None:
        if self._is_ours and not self.up.has_ended:
            # RFC 9113, 8.1: whole response, no need for the rest of the request.
            self.all.down.reset(self.number, ErrorCodes.NO_ERROR)
            self._forget()
            return
        self._close()

    def _close(self) -> None:
        """Forget it, once the response is the client's and nothing more goes upstream."""
        if not self.down.is_done or (self.is_open_up and not self.up.is_done):
            return
        if self.up.has_ended:
            self._forget()
            self.all.finished()
        elif self._response_ended and not self.is_open_up:
            self.all.down.reset(self.number, self._code)
            self._forget()

    def _closed_up(self) -> None:
        self.is_open_up = False
        self.all.by_up.pop(self.up_number, None)

    def _close_up(self, code: int) -> None:
        if self.is_open_up:
            self._closed_up()
            self.up.sink.reset(self.up_number, code)
        self.up.drop()

    def _forget(self) -> None:
        self.up.drop()
        self.down.drop()
        self.all.streams.pop(self.number, None)
