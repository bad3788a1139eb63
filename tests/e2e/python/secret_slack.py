"""A Socket Mode client as slack_sdk's manual writes it, its tokens from the environment.

After its third event it says so and waits for a line; then it posts and stops.
"""

import os
import sys
import threading

from slack_sdk import WebClient
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

bot, app = os.environ["SLACK_BOT_TOKEN"], os.environ["SLACK_APP_TOKEN"]
print(f"tokens {bot} {app}", flush=True)
web = WebClient(token=bot)
web.auth_test()
client = SocketModeClient(app_token=app, web_client=web)
done = threading.Event()
heard = 0


def hear(client: SocketModeClient, request: SocketModeRequest) -> None:
    global heard
    if request.type != "events_api":
        return
    client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
    print(f"heard {request.payload['event']['text']}", flush=True)
    heard += 1
    if heard == 3:
        done.set()


client.socket_mode_request_listeners.append(hear)
client.connect()
done.wait()
print("search me", flush=True)
sys.stdin.readline()
posted = web.chat_postMessage(channel="C0LAB", text=f"my token is {bot}")
print(f"posted {posted['ok']}".lower(), flush=True)
client.close()
os._exit(0)
