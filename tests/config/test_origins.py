"""server.cors_origins: exact origins, patterns, and the windows of programs on this machine."""

import pytest
from conftest import AGENTS

from gateway.config.check import warnings
from gateway.config.load import ConfigError, parse
from gateway.config.origins import Origins

AGENT = "agents: {a: {platform: dify}}\n"
APPS = ["tauri://localhost", "capacitor://localhost", "ionic://localhost", "app://obsidian.md",
        "vscode-webview://1f0c-77aa", "vscode-file://vscode-app", "http://tauri.localhost"]  # fmt: skip


async def preflight(gw, origin, asked="authorization,content-type"):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": asked}  # fmt: skip
    return await gw.client.options(f"{gw.url}/v1/chat/completions", headers=headers)


@pytest.fixture
async def plain(gateway, demo):
    served = await demo("dify")
    return await gateway(agents={"dify": {**AGENTS["dify"], "base_url": served.url}})


@pytest.mark.parametrize("origin", APPS)
async def test_the_window_of_a_program_on_this_machine_may_call(plain, origin):
    answer = await preflight(plain, origin)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    body = {"model": "dify", "messages": [{"role": "user", "content": "hi"}]}
    answer = await plain.post("/v1/chat/completions", body, headers={"Origin": origin})
    assert answer.status == 200


async def test_a_page_from_disk_may_call_with_a_key_alone(gateway, demo):
    served = await demo("dify")
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        auth={"anonymous": True, "keys": [{"name": "a", "key": "sk-caller-12345678"}]},
    )
    page = {"Origin": "file://"}
    assert (await preflight(gw, "file://")).status == 204
    assert (await preflight(gw, "file://", "x-api-key")).status == 204
    assert (await preflight(gw, "file://", "content-type")).status == 403
    assert (await gw.get("/v1/models", headers=page)).status == 403
    answer = await gw.get("/v1/models", headers={**page, "x-api-key": "sk-caller-12345678"})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "file://"


@pytest.mark.parametrize(
    "origin", ["null", "chrome-extension://x", "data://x", "app://", "file:///x"]
)
async def test_what_a_browser_may_load_from_elsewhere_is_not_a_program(plain, origin):
    assert (await preflight(plain, origin)).status == 403


# The entries by themselves.


def listed(*entries: str) -> Origins:
    config = parse(AGENT + f"server: {{cors_origins: {list(entries)!r}}}", {})
    return Origins(config.server.cors_origins)


@pytest.mark.parametrize(
    ("entry", "fits", "other"),
    [
        ("https://chat.example.com", ["https://chat.example.com"],
         ["http://chat.example.com", "https://chat.example.com:8443", "https://a.chat.example.com"]),
        ("https://Chat.Example.com", ["https://chat.example.com"], []),
        ("https://chat.example.com/", ["https://chat.example.com"], []),
        ("https://chat.example.com:443", ["https://chat.example.com"], []),
        ("http://192.168.1.5:80", ["http://192.168.1.5"], ["http://192.168.1.5:81"]),
        ("chat.example.com", ["https://chat.example.com", "http://chat.example.com"],
         ["https://evil-chat.example.com", "https://chatXexample.com"]),
        ("192.168.1.5:8080", ["http://192.168.1.5:8080"], ["http://192.168.1.5"]),
        ("https://*.example.com", ["https://a.example.com", "https://a.b.example.com"],
         ["https://example.com", "https://evilexample.com", "http://a.example.com",
          "https://a.example.com.evil.org", "https://evil.org/.example.com"]),
        ("*.example.com", ["https://a.example.com", "http://a.example.com"],
         ["https://example.com"]),
        ("vscode-webview://*", ["vscode-webview://1f0c77aa"], ["vscode-file://1f0c77aa"]),
        ("chrome-extension://*", ["chrome-extension://abcdefgh"], ["moz-extension://abcdefgh"]),
        ("http://intranet:*", ["http://intranet:8080"], ["http://intranet.evil.org", "http://intranet"]),
        ("file://", ["file://"], ["null"]),
        ("null", ["null"], ["file://", "https://null"]),
    ],
)  # fmt: skip
def test_an_entry_fits_what_it_names_and_nothing_else(entry, fits, other):
    origins = listed(entry)
    assert [origin for origin in fits if not origins.lists(origin)] == []
    assert [origin for origin in other if origins.lists(origin)] == []


@pytest.mark.parametrize(
    "entry",
    ["https://chat.example.com/app", "https://x.example.com?a=1", "https://me@x.example.com",
     "https://a.*.example.com", "https://*example.com", "https://", "https://*", "http://*",
     "file:///home/me/page.html", "a b", "", "https://x.example.com#top"],
)  # fmt: skip
def test_an_entry_that_can_never_fit_is_refused(entry):
    with pytest.raises(ConfigError) as caught:
        listed("https://fine.example.com", entry)
    assert caught.value.problems[0].startswith("server.cors_origins[1]: ")


def test_check_remarks_on_what_few_people_mean():
    config = parse(AGENT + "server: {cors_origins: ['*', 'null', 'https://a.example.com']}", {})
    lines = [line for line in warnings(config) if "cors_origins" in line]
    assert lines[0].startswith("server.cors_origins[1]: any web page can make its origin null")
    assert lines[1] == "server.cors_origins[2]: * stands in the list, which is any page"


def test_a_null_origin_never_borrows_anonymous_access():
    origins = listed("null", "*")
    assert origins.lists("null")
    assert not origins.may_borrow("null")
    assert not origins.may_borrow("https://evil.example")
