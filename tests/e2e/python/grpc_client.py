"""A gRPC client of grpc_server.py through a proxy: every kind of call, and prints OK.

Usage: grpc_client.py TARGET PROXY ROOTS. With a fourth word, that status is expected of Echo.
"""

import queue
import sys
from pathlib import Path

import grpc

target, proxy, roots = sys.argv[1:4]
channel = grpc.secure_channel(
    target,
    grpc.ssl_channel_credentials(Path(roots).read_bytes()),
    options=[("grpc.http_proxy", proxy)],
)
unary = channel.unary_unary("/lab.Lab/Echo")


def failure_of(method):
    try:
        channel.unary_unary(method)(b"x", timeout=8)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError(f"{method} did not fail")


if len(sys.argv) > 4:
    status, details = failure_of("/lab.Lab/Echo")
    assert status == sys.argv[4], (status, details)
    print("OK", details)
    sys.exit()
answer, call = unary.with_call(b"hello", metadata=(("x-tell", "me"),), timeout=8)
assert answer == b"hello"
assert dict(call.trailing_metadata())["x-told"] == "me"

says: queue.Queue = queue.Queue()
talk = channel.stream_stream("/lab.Lab/Talk")(iter(says.get, None), timeout=8)
for number in range(5):
    says.put(b"%d" % number)
    assert next(talk) == b"heard %d" % number
says.put(None)
assert list(talk) == [b"bye"]

assert len(list(channel.unary_stream("/lab.Lab/Count")(b"2000", timeout=8))) == 2000
large = bytes(3 << 20)
assert unary(large, timeout=8) == large

assert failure_of("/lab.Lab/Fail") == ("FAILED_PRECONDITION", "not today")

cancelled = channel.unary_stream("/lab.Lab/Count")(b"100000", timeout=8)
next(cancelled)
cancelled.cancel()
assert unary(b"after", timeout=8) == b"after"

calls = [unary.future(b"%d" % number, timeout=8) for number in range(100)]
assert [call.result() for call in calls] == [b"%d" % number for number in range(100)]
print("OK")
