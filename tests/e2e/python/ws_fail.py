"""Opens the WebSockets of a JSON list on standard input, one after another, and ends each as told.

An item: {"url": ..., "origin": ..., "offer": [...], "trust": false, "then": "wait" |
"close CODE" | "send TEXT"}, and, without the library, which says goodbye in each of its ways:
"reset" | "end" | "unmasked". Prints one line for each: what came of it.
"""

import json
import os
import socket
import ssl
import struct
import sys
from urllib.parse import urlsplit

from websockets.sync.client import connect

RESET = struct.pack("ii", 1, 0)


def context_of(item):
    if item.get("trust", True):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def with_library(item, word, rest):
    options = {"proxy": None, "open_timeout": 10, "max_size": 65536, "compression": None}
    if item["url"].startswith("wss:"):
        options["ssl"] = context_of(item)
    if "origin" in item:
        options["origin"] = item["origin"]
    if "offer" in item:
        options["subprotocols"] = item["offer"]
    with connect(item["url"], ping_interval=None, **options) as ws:
        if word == "close":
            ws.close(int(rest), "as told")
            return
        if word == "send":
            ws.send(rest)
        while True:
            ws.recv(timeout=15)


def by_hand(item, word):
    url = urlsplit(item["url"])
    sock = socket.create_connection((url.hostname, url.port or 443), timeout=10)
    if url.scheme == "wss":
        sock = context_of(item).wrap_socket(sock, server_hostname=url.hostname)
    head = [f"GET {url.path} HTTP/1.1", f"Host: {url.netloc}", "Upgrade: websocket"]
    head += ["Connection: Upgrade", "Sec-WebSocket-Key: " + "A" * 22 + "=="]
    head += ["Sec-WebSocket-Version: 13"]
    if "offer" in item:
        head += ["Sec-WebSocket-Protocol: " + ", ".join(item["offer"])]
    sock.sendall("\r\n".join([*head, "", ""]).encode())
    assert b" 101 " in sock.recv(4096)
    if word == "unmasked":
        sock.sendall(b"\x81\x02hi")
        while sock.recv(4096):
            pass
        return
    if word == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # Past TLS: a process that is killed says nothing either.
    os.close(sock.detach())


for item in json.load(sys.stdin):
    word, _, rest = item.get("then", "wait").partition(" ")
    try:
        if word in ("reset", "end", "unmasked"):
            by_hand(item, word)
        else:
            with_library(item, word, rest)
        said = "ended"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([item["url"], said]), flush=True)
