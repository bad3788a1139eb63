"""Ask over HTTP/2, many at once, and print the version and how many.

Usage: get_http2_httpx.py URL PROXY ROOTS.
"""

import asyncio
import ssl
import sys

import httpx

url, proxy, roots = sys.argv[1:4]


async def main() -> None:
    context = ssl.create_default_context(cafile=roots)
    async with httpx.AsyncClient(http2=True, proxy=proxy, verify=context, timeout=8) as client:
        first = await client.get(url + "/hello")
        answers = await asyncio.gather(*(client.get(f"{url}/n/{n}") for n in range(50)))
        assert [answer.text for answer in answers] == [f"/n/{n}" for n in range(50)]
        large = await client.get(url + "/large")
        assert len(large.content) == 10 << 20
        put = await client.post(url + "/size", content=bytes(10 << 20))
        assert put.text == str(10 << 20)
        print(first.http_version, len(answers))


asyncio.run(main())
