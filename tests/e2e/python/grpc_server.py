"""A gRPC server with TLS: prints its port, and serves until it is ended.

Usage: grpc_server.py CERTIFICATE KEY. /lab.Lab/Echo echoes; /lab.Lab/Talk answers each message of a
stream as it comes; /lab.Lab/Count sends N messages for "N"; /lab.Lab/Fail fails without a message.
"""

import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc


def echo(request, context):
    context.set_trailing_metadata(
        (("x-told", dict(context.invocation_metadata()).get("x-tell", "")),)
    )
    return request


def talk(requests, context):
    for request in requests:
        yield b"heard " + request
    yield b"bye"


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number * 100


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
}

if __name__ == "__main__":
    certificate, key = (Path(name).read_bytes() for name in sys.argv[1:3])
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Lab", METHODS),))
    credentials = grpc.ssl_server_credentials(((key, certificate),))
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    server.start()
    threading.Event().wait()
