import sys

from websockets.sync.client import connect

with connect(sys.argv[1]) as socket:
    socket.send("hello from a websocket")
    print(socket.recv(timeout=10))
