import asyncio
import sys

import aiohttp


async def main() -> int:
    async with aiohttp.ClientSession() as client, client.get(sys.argv[1]) as response:
        print(await response.text())
        if not response.ok:
            print(f"status {response.status}", file=sys.stderr)
        return 0 if response.ok else 1


sys.exit(asyncio.run(main()))
