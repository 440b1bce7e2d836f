"""Callers without a key: programs on this machine, as far as a request can show it."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import HttpVersion10, HttpVersion11
from conftest import AGENTS
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.config.access import access_note
from gateway.config.load import parse
from gateway.config.origins import Origins
from gateway.http.locality import Hint, refusal

ROOT = Path(__file__).parent.parent.parent
AGENT = "agents: {a: {platform: dify}}\n"


# Over a socket, as proxies send it.


async def raw(gateway, head: str) -> str:
    """The answer to literal bytes; `PORT` is replaced by the gateway's port."""
    port = gateway.url.rpartition(":")[2]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    writer.write(head.replace("PORT", port).replace("\n", "\r\n").encode())
    answer = (await reader.read(4000)).decode("utf-8", "replace")
    writer.close()
    await writer.wait_closed()
    return answer


NGINX_BARE = "GET /v1/models HTTP/1.0\nHost: 127.0.0.1:PORT\nConnection: close\n\n"
NGINX_UPSTREAM = "GET /v1/models HTTP/1.1\nHost: gateway_backend\nConnection: close\n\n"
NGINX_DEBIAN = (
    "GET /v1/models HTTP/1.0\nHost: gateway.example.com\nX-Real-IP: 203.0.113.9\n"
    "X-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: https\nConnection: close\n\n"
)
CADDY = (
    "GET /v1/models HTTP/1.1\nHost: gateway.example.com\nX-Forwarded-For: 203.0.113.9\n"
    "X-Forwarded-Host: gateway.example.com\nX-Forwarded-Proto: https\nVia: 1.1 Caddy\n\n"
)
HAPROXY = "GET /v1/models HTTP/1.1\nHost: gateway.example.com\n\n"
APACHE = "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:PORT\nX-Forwarded-For: 203.0.113.9\n\n"


@pytest.fixture
async def local(gateway, demo):
    served = await demo("dify")
    return await gateway(agents={"dify": {**AGENTS["dify"], "base_url": served.url}})


@pytest.mark.parametrize("head", [NGINX_BARE, NGINX_UPSTREAM, NGINX_DEBIAN, CADDY, HAPROXY, APACHE])
async def test_behind_a_proxy_on_this_machine_a_key_is_needed(local, head):
    answer = await raw(local, head)
    assert answer.split()[1] == "401"
    assert "Calls without a key are only for programs on this machine" in answer
    assert "Authorization: Bearer" in answer


async def test_from_here_no_key_is_needed(local):
    answer = await raw(
        local, "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:PORT\nConnection: close\n\n"
    )
    assert answer.split()[1] == "200"


LOCAL = "GET /v1/models HTTP/1.1\nHost: localhost\nConnection: close\n\n"


@pytest.mark.parametrize(
    ("was", "instead", "status"),
    [("localhost", "foo.localhost", 200), ("localhost", "evil.com/.localhost", 401),
     ("localhost", "evil.com?.localhost", 401), ("localhost", "evil.com#.localhost", 401),
     ("localhost", "evil.com@localhost", 401), ("localhost", "a b.localhost", 401),
     ("localhost", "evil.com\\.localhost", 401), ("localhost", "evil.com;.localhost", 401),
     ("/v1/models", "http://localhost/v1/models", 200), ("/v1/models", "http://evil.com/v1/models", 401),
     ("/v1/models", "https://evil.com:443/v1/models", 401),
     ("/v1/models", "http://localhost@evil.com/v1/models", 401),
     ("HTTP/1.1", "HTTP/2.0", 401), ("HTTP/1.1", "HTTP/1.2", 401)],
)  # fmt: skip
async def test_only_plain_requests_to_this_machine_need_no_key(local, was, instead, status):
    answer = await raw(local, LOCAL.replace(was, instead))
    given = int(answer.split()[1])
    assert given == status or (status == 401 and given == 400)


@pytest.mark.parametrize(
    "name",
    ["X_Forwarded_For", "X-Forward-For", "Forwarded-For", "X-Vercel-Id", "X-Vercel-Forwarded-For", "Ngrok-Trace-Id",
     "X-MS-Proxy", "X-Nginx-Proxy", "Proxy-Connection", "X-Acme-Forwarded-For", "X_Real_IP"],
)  # fmt: skip
async def test_a_header_of_a_proxy_asks_for_a_key(local, name):
    answer = await raw(local, LOCAL.replace("Connection", f"{name}: 1\nConnection"))
    assert answer.split()[1] == "401"


@pytest.mark.parametrize(
    "twice",
    ["Origin: http://localhost\nOrigin: http://evil.com", "Origin: \nOrigin: http://evil.com",
     "Sec-Fetch-Site: none\nSec-Fetch-Site: cross-site", "Host: localhost"],
)  # fmt: skip
async def test_headers_that_identify_the_caller_must_not_repeat(local, twice):
    answer = await raw(local, LOCAL.replace("Connection", f"{twice}\nConnection"))
    assert answer.split()[1] in ("400", "401", "403")


async def test_an_invented_key_does_not_help_through_a_proxy(local):
    head = CADDY.replace("Via", "Authorization: Bearer anything\nVia")
    assert (await raw(local, head)).split()[1] == "401"


async def test_a_page_that_rebinds_its_name_reads_no_files(local):
    form = aiohttp.FormData()
    form.add_field("file", b"MY SECRET DIARY", filename="diary.txt")
    async with local.client.post(f"{local.url}/v1/files", data=form) as answer:
        id_ = (await answer.json())["id"]
    assert (await local.get(f"/v1/files/{id_}/content")).status == 200
    page = {"Host": "attacker.example:3000", "Sec-Fetch-Site": "same-origin"}
    for path in ("/v1/files", f"/v1/files/{id_}/content", "/api/v1/upload/agents", "/v1/models"):
        assert (await local.get(path, headers=page)).status == 401


async def test_no_caller_through_a_trusted_proxy_is_anonymous(gateway, demo):
    served = await demo("dify")
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        server={"trusted_proxies": ["127.0.0.1"]},
        auth={"anonymous": True},
    )
    for address in ("203.0.113.9", "127.0.0.1"):
        answer = await gw.get("/v1/models", headers={"X-Forwarded-For": address})
        assert answer.status == 401
    assert (await gw.get("/v1/models")).status == 200


# The rule by itself.


def refused(headers=(), address="127.0.0.1", version=HttpVersion11, hosts=(), anywhere=False):
    """The error for a request with these headers, `Host: localhost:3000` unless they name one."""
    given = CIMultiDict(headers)
    given.setdefault("Host", "localhost:3000")
    origins = Origins(["https://chat.example.com"])
    return refusal(CIMultiDictProxy(given), version, address, origins, hosts, anywhere=anywhere)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:3000", "LOCALHOST:3000", "localhost.", "127.0.0.1:3000", "127.1.2.3",
     "[::1]", "[::1]:3000", "[::ffff:127.0.0.1]:3000", "gateway.localhost:3000"],
)  # fmt: skip
def test_a_program_that_asks_for_this_machine_may_call(host):
    assert refused({"Host": host}) is None


@pytest.mark.parametrize(
    "host",
    ["gateway.example.com", "attacker.example:3000", "192.168.1.5:3000", "0.0.0.0:3000", "",
     "localhost.attacker.example", "notlocalhost", "127.0.0.1.attacker.example", "localhost@evil",
     "127.0.0.1:3000:80", "[::1", "[2001:db8::1]:3000", "gateway_upstream", "localhost/x"],
)  # fmt: skip
def test_another_host_is_401_and_names_the_option(host):
    error = refused({"Host": host})
    assert error.status == 401
    assert "auth.anonymous_hosts" in error.message


def test_two_hosts_must_both_be_this_machine():
    assert refused([("Host", "localhost"), ("Host", "attacker.example")]).status == 401


def test_hosts_can_be_listed():
    assert refused({"Host": "ai-gateway:3000"}, hosts=["ai-gateway"]) is None
    assert refused({"Host": "other:3000"}, hosts=["ai-gateway"]).status == 401


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Anything", "Forwarded", "X-Real-IP",
     "Via", "CF-Connecting-IP", "True-Client-IP", "x-client-ip", "Fastly-Client-IP", "CDN-Loop"],
)  # fmt: skip
def test_any_forwarding_header_is_401_and_is_named(name):
    for value in ("127.0.0.1", "", "203.0.113.9"):
        error = refused({name: value})
        assert error.status == 401
        assert name.lower() in error.message


@pytest.mark.parametrize("address", ["203.0.113.9", "192.168.1.5", "2001:db8::1", "", "unix"])
def test_another_address_is_401(address):
    assert refused(address=address).status == 401


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_every_loopback_address_may_call(address):
    assert refused(address=address) is None


def test_http_1_0_is_what_a_proxy_speaks_by_default():
    error = refused({"Host": "127.0.0.1:3000", "Connection": "close"}, version=HttpVersion10)
    assert error.status == 401
    assert "HTTP/1.0" in error.message


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-origin", "Referer": "https://gateway.example.com/page"},
     {"Origin": "http://attacker.example:3000", "Sec-Fetch-Site": "same-origin"}],
)  # fmt: skip
def test_a_page_from_elsewhere_is_403(headers):
    for anywhere in (False, True):
        error = refused(headers, anywhere=anywhere)
        assert error.status == 403
        assert "server.cors_origins" in error.message
        assert "give the page a token" in error.message  # a key in a page is public


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://chat.example.com", "Sec-Fetch-Site": "cross-site"},
     {"Origin": "http://localhost:5173", "Sec-Fetch-Site": "cross-site"},
     {"Origin": "app://obsidian.md", "Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site", "Referer": "http://localhost:5173/"},
     {"Sec-Fetch-Site": "none"}, {"Referer": "https://my-program.example/"}],
)  # fmt: skip
def test_listed_pages_and_programs_may_call(headers):
    assert refused(headers) is None


def test_anywhere_excludes_pages_and_unlisted_hosts():
    far = {"Host": "gateway.example.com", "X-Forwarded-For": "203.0.113.9"}
    assert refused(far, "203.0.113.9", HttpVersion10, anywhere=True) is None
    assert refused(far, "203.0.113.9", anywhere=True, hosts=["other.example"]).status == 401
    assert refused(far, "203.0.113.9", anywhere=True, hosts=["gateway.example.com"]) is None


@pytest.mark.parametrize(
    ("setting", "path"),
    [("server: {trusted_proxies: [127.0.0.1]}", "server.trusted_proxies"),
     ("server: {ops_port: 9090}", "server.ops_port"),
     ("server: {tls: {cert: a, key: b}}", "server.tls"),
     ("storage: {public_base_url: 'https://files.example.com'}", "storage.public_base_url"),
     (f"database: postgresql://h/d\nauth: {{jwt_secret: {'x' * 32}}}", "database (PostgreSQL)")],
)  # fmt: skip
def test_auto_is_off_as_soon_as_a_setting_says_deployed(setting, path):
    config = parse(AGENT + setting, {})
    assert not config.anonymous
    assert access_note(config) == f"calls need a key, since {path} is set"
    if "auth" not in setting:
        assert parse(f"{AGENT}{setting}\nauth: {{anonymous: true}}", {}).anonymous


def test_the_start_says_why_calls_need_a_key():
    off = parse(AGENT + "auth: {anonymous: false}", {})
    assert access_note(off) == "calls need a key, since auth.anonymous is false (ANONYMOUS=false)"
    everywhere = parse(AGENT + "server: {host: 0.0.0.0}", {})
    assert access_note(everywhere) == "calls need a key, since other machines can reach 0.0.0.0"


async def test_a_call_refused_for_a_proxy_is_explained_once_in_the_log(local, caplog):
    for _ in range(3):
        assert (await raw(local, APACHE)).split()[1] == "401"
    told = [line for line in caplog.messages if "ANONYMOUS=false" in line]
    assert len(told) == 1
    assert "the header 'x-forwarded-for'" in told[0]
    assert "server.trusted_proxies" in told[0]


def test_the_hint_is_logged_again_after_a_while(caplog):
    now_s = [100.0]
    tell = Hint(lambda: now_s[0])
    for now_s[0] in (100.0, 101.0, 699.0, 701.0):
        tell(refused({"Via": "1.1 Caddy"}))
    assert len(caplog.messages) == 2


def test_anonymous_hosts_are_names_alone():
    config = parse(AGENT + "auth: {anonymous_hosts: [Ai-Gateway, '[::2]']}", {})
    assert config.auth.anonymous_hosts == ["ai-gateway", "[::2]"]
    for bad in ("http://gateway", "gateway:3000", "*.example.com", ""):
        with pytest.raises(Exception, match=r"auth.anonymous_hosts\[0\]: must be a host's name"):
            parse(f"{AGENT}auth: {{anonymous_hosts: ['{bad}']}}", {})


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_the_examples_of_proxies_demand_keys(name):
    assert "ANONYMOUS=false" in (ROOT / "config/proxies" / name).read_text("utf-8")
