"""A bot as discord.py's manual writes it, its token from the environment.

It says what happens, and waits for a line before it goes.
"""

import asyncio
import os
import sys

import discord


class Bot(discord.Client):
    async def on_ready(self) -> None:
        print(f"ready as {self.user.name}", flush=True)

    async def on_resumed(self) -> None:
        print("resumed", flush=True)

    async def on_socket_event_type(self, name: str) -> None:
        if name == "LAB_GOODBYE":
            print("search me", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            posted = await self.http.request(
                discord.http.Route("POST", "/channels/{channel_id}/messages", channel_id=1),
                json={"content": f"my token is {os.environ['DISCORD_BOT_TOKEN']}"},
            )
            print(f"posted {posted['content']}", flush=True)
            await self.close()


print(f"token {os.environ['DISCORD_BOT_TOKEN']}", flush=True)
Bot(intents=discord.Intents.none(), guild_ready_timeout=0.1).run(
    os.environ["DISCORD_BOT_TOKEN"], log_handler=None
)
