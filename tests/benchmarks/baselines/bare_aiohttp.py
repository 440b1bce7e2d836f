"""The framework's own cost: aiohttp passes bytes through, without key, limit or record.

usage: bare_aiohttp.py PORT UPSTREAM_URL
"""

import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
UPSTREAM = web.AppKey("UPSTREAM", str)
JSON = {"Content-Type": "application/json"}


async def pass_through(request: web.Request) -> web.StreamResponse:
    url, body = request.app[UPSTREAM] + request.path, await request.read()
    async with request.app[SESSION].post(url, data=body, headers=JSON) as answer:
        if "event-stream" not in answer.headers.get("Content-Type", ""):
            return web.Response(body=await answer.read(), content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as opened:
        app[SESSION] = opened
        yield


def main() -> None:
    app = web.Application()
    app[UPSTREAM] = sys.argv[2]
    app.cleanup_ctx.append(session)
    app.router.add_post("/{path:.*}", pass_through)
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = None
    port = int(sys.argv[1])
    web.run_app(
        app, host="127.0.0.1", port=port, backlog=4096, access_log=None, print=None, loop=loop
    )


main()
