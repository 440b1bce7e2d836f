"""Demo platforms: small simulators that speak each platform's own wire protocol over loopback.

The gateway's real adapters talk to them, so a call that works here works the same way against the
real platform. They are also the tests' upstreams.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module

from aiohttp import web

from gateway.config.models import Config
from gateway.demo.base import Demo


def simulator(platform: str) -> type[Demo]:
    """The simulator of a kind of upstream: a module of its name."""
    module = import_module(f"gateway.demo.{platform}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    own = [each for each in classes if each.__module__ == module.__name__]
    return next(each for each in own if issubclass(each, Demo))


@asynccontextmanager
async def serve_demo(demo: Demo) -> AsyncIterator[str]:
    """Serve one simulator on a free loopback port; yields its address."""
    runner = web.AppRunner(
        demo.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Demos:
    """The simulators of one process. They start when a configuration first needs them."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], tuple[str, AsyncExitStack]] = {}
        self._before: set[tuple[str, str, str]] = set()

    async def urls(self, config: Config) -> Mapping[str, str]:
        """The addresses of the simulators by agent name: one for each agent whose base_url is
        `demo:`. Those of the previous configuration keep running for the calls that use them."""
        urls: dict[str, str] = {}
        wanted: set[tuple[str, str, str]] = set()
        for name, agent in config.agents.items():
            if not agent.is_demo:
                continue
            which: tuple[str, str, str] = (name, agent.platform, agent.api_key.reveal())
            wanted.add(which)
            if which not in self._served:
                demo, stack = (
                    simulator(agent.platform)(key=agent.api_key.reveal()),
                    AsyncExitStack(),
                )
                self._served[which] = await stack.enter_async_context(serve_demo(demo)), stack
            urls[name] = self._served[which][0]
        for which in self._served.keys() - wanted - self._before:
            await self._served.pop(which)[1].aclose()
        self._before = wanted
        return urls

    async def close(self) -> None:
        for _, stack in self._served.values():
            await stack.aclose()


__all__ = ["Demo", "Demos", "serve_demo", "simulator"]
