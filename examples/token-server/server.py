"""Serves ../web-page and hands out its tokens: GATEWAY_KEY=sk-gw-… python server.py

Needs aiohttp, which the gateway's own environment has.
"""

import os
import re
import sys
import uuid
from pathlib import Path

import aiohttp
from aiohttp import web

GATEWAY = os.environ.get("GATEWAY", "http://localhost:3000")
KEY = os.environ.get("GATEWAY_KEY") or sys.exit(
    "Set GATEWAY_KEY to a key of the gateway: GATEWAY_KEY=sk-gw-… python server.py"
)
WISH = {"agents": ["dify"], "expires_in": 900, "permissions": ["chat"]}
PAGE = Path(__file__).resolve().parent.parent / "web-page"


def visitor(request: web.Request) -> str:
    """Who asks. Take your own session's user here: a random cookie only tells browsers apart."""
    known = request.cookies.get("visitor", "")
    return known if re.fullmatch(r"[\w-]{36}", known) else str(uuid.uuid4())


async def token(request: web.Request) -> web.Response:
    id_ = visitor(request)
    wish = {**WISH, "user": f"visitor-{id_}"}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as gateway:
        try:
            async with gateway.post(f"{GATEWAY}/api/v1/tokens", json=wish) as answer:
                response = web.json_response(await answer.json(), status=answer.status)
        except aiohttp.ClientError:
            return web.json_response({"msg": "The gateway cannot be reached."}, status=502)
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie("visitor", id_, httponly=True, samesite="Lax", max_age=31536000)
    return response


async def index(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE / "index.html")


app = web.Application()
app.router.add_get("/", index)
app.router.add_post("/token", token)
app.router.add_static("/", PAGE)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
