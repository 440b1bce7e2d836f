"""The safe fetcher: which of the callers' URLs it fetches, and what it never connects to."""

import asyncio
import datetime
import socket
import ssl
from contextlib import aclosing
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from aiohttp import web
from conftest import Script
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from wire import listening

from gateway.config.models import Fetch, Outgoing
from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.files.fetcher import MAX_URL, Guard

LOOPBACK = ["127.0.0.0/8"]  # what a test's `allow` needs for its own servers
PRIVATE = "private or reserved network"
FILE = bytes(range(256)) * 1000


class Names:
    """A fake DNS. Each look-up of a name takes its next answer; the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host, port, owner):
        self.asked.append(host)
        answers = self.answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 0, "", (a, port))
            for a in addresses
        ]


@pytest.fixture
def guard(stack):
    """`guard(allow=…, max_size=…, timeout=…, names=Names(…))`; allows nothing by default."""

    def make(names: Names | None = None, outgoing=Outgoing, **config) -> Guard:
        made = Guard(Fetch(**config), outgoing, names)
        stack.push_async_callback(made.close)
        return made

    return make


@pytest.fixture
def serve(stack):
    """`await serve({"/path": handler}, ssl_context)`: the URL of a server on loopback."""

    async def start(handlers, context: ssl.SSLContext | None = None) -> str:
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "https" if context else "http"
        return f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"

    return start


@pytest.fixture
def trap():
    """A listening socket that must not be connected to; (port, a check that no client has)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def is_untouched() -> bool:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return True
            return False

        yield listener.getsockname()[1], is_untouched


def gives(body: bytes = FILE, **headers: str):
    """A handler that answers with a file."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


def leads_to(target: str, status: int = 302):
    """A handler that redirects."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": target})

    return handler


async def fetch(guard: Guard, url: str) -> bytes:
    async with guard.open(url) as source:
        return b"".join([chunk async for chunk in source.chunks])


async def refused(guard: Guard, url: str, error=InvalidRequest) -> str:
    """The message with which `url` is refused."""
    with pytest.raises(error) as caught:
        await fetch(guard, url)
    assert type(caught.value) is error
    return caught.value.message


# What is fetched.


async def test_a_file_comes_whole_with_its_name_type_and_size(guard, serve):
    url = await serve({"/{name}": gives(Content_Type="image/PNG; charset=x")})
    async with guard(allow=LOOPBACK).open(f"{url}/a%20b.png?x=/y#/z") as source:
        assert (source.name, source.mime, source.size) == ("a b.png", "image/png", len(FILE))
        assert b"".join([chunk async for chunk in source.chunks]) == FILE


@pytest.mark.parametrize(
    ("path", "name"),
    [("", ""), ("/", ""), ("/a/", ""), ("/%E4%BD%A0%E5%A5%BD.pdf", "你好.pdf"),
     ("/你好.pdf", "你好.pdf"), ("/..%2F..%2Fetc%2Fpasswd", "passwd"), ("/a%5Cb.txt", "b.txt"),
     ("/a%0D%0Ab%00.txt", "ab.txt"), ("/x/%2E%2E%2F%2E%2E", ""), ("/%FF.bin", "%FF.bin")],
)  # fmt: skip
async def test_the_name_is_the_last_segment_of_the_path_and_no_path(guard, scripted, path, name):
    upstream = await scripted(Script([b"x"], headers={}))
    async with guard(allow=LOOPBACK).open(upstream.url + path) as source:
        assert source.name == name


async def test_a_file_without_length_or_type_comes_whole_too(guard, scripted):
    upstream = await scripted(Script([FILE[:7], FILE[7:]], headers={}))
    async with guard(allow=LOOPBACK).open(upstream.url) as source:
        assert (source.name, source.mime, source.size) == ("", "", None)
        assert b"".join([chunk async for chunk in source.chunks]) == FILE


async def test_an_empty_file_is_a_file(guard, serve):
    url = await serve({"/": gives(b"")})
    assert await fetch(guard(allow=LOOPBACK), url) == b""


async def test_a_name_is_looked_up_and_kept_as_the_host(guard, scripted):
    upstream = await scripted(Script([b"x"], headers={}))
    url = upstream.url.replace("127.0.0.1", "Files.Test") + "/a"
    names = Names(files_test=[["127.0.0.1"]])
    assert await fetch(guard(names, allow=LOOPBACK), url) == b"x"
    headers = upstream.requests[0][1]
    assert headers["host"] == url.split("/")[2].lower()


async def test_no_credentials_cookies_or_proxy_go_along(guard, scripted, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    upstream = await scripted(Script([b"x"], headers={"Set-Cookie": "session=1"}))
    one = guard(Names(files_test=[["127.0.0.1"]]), allow=LOOPBACK)
    for _ in range(2):
        assert await fetch(one, upstream.url.replace("127.0.0.1", "files.test")) == b"x"
    for line, headers, body in upstream.requests:
        assert (line, body) == ("GET / HTTP/1.1", b"")
        assert headers.keys() <= {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert headers["user-agent"] == "ai-gateway"
        assert headers["accept-encoding"] == "identity"


async def test_a_guard_that_was_never_used_closes(guard):
    await guard().close()


# Valid and invalid URLs.


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://EXAMPLE.com:8443/a/b?c=d#e", "HTTP://a-b.c_d.example:/",
     "http://8.8.8.8/", "http://[2606:4700::1111]:80/", "https://例子.中国/文件?名=值",
     "http://xn--fsqu00a.xn--fiqs8s/", "http://1.2.3.4.example.com/", "http://0x7f.example/",
     "http://example.com/?next=http://user@127.0.0.1/", "http://mylocalhost/",
     "http://localhost.example.com/", "http://a.b/" + "x" * (MAX_URL - 11)],
)  # fmt: skip
def test_these_urls_are_well_formed(url):
    assert Guard.check(url).scheme in ("http", "https")


NOT_HTTP = ["", "x", "example.com", "//example.com/", "/etc/passwd", "file:///etc/passwd",
            "ftp://example.com/", "gopher://example.com/", "data:text/plain,x", "s3://bucket/key",
            "jar:http://example.com!/", "http:example.com", "http:/example.com/", "https:",
            "unix:///run/docker.sock", "javascript:alert(1)", "httpx://example.com/"]  # fmt: skip
WITH_USER = ["http://user@example.com/", "http://user:password@example.com/", "http://@example.com",
             "http://:password@example.com/", "http://example.com@127.0.0.1/",
             "http://example.com:80@127.0.0.1/", "http://a@b@example.com/"]  # fmt: skip
WITH_SPACE = [" http://example.com/", "http://example.com/ ", "http://exam ple.com/",
              "http://example.com/\r\nHost: a", "http://exam\tple.com/", "http://example.com/\x00",
              "http://example.com/\x7f", "http://127.0.0.1\u00a0/", "http://exa\u200bmple.com/",
              "http://exam\u00adple.com/", "http://a/\ud800", "http://a/\u2028", "http://a/\u3000",
              "http://example.com\\@127.0.0.1/", "http:\\\\example.com/",
              "http://example.com/\\..\\"]  # fmt: skip
OTHER_NUMBERS = ["2130706433", "0x7f000001", "0X7F000001", "017700000001", "127.1", "127.0.1", "0",
                 "0x0", "00", "0x", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01", "127.0.0.0x1", "1",
                 "0x7f.1", "127.0x1", "256.0.0.1", "1.2.3.4.5", "4294967295", "99999999999",
                 "example.0x7f", "example.1"]  # fmt: skip
LOOK_ALIKES = ["１２７.０.０.１", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.⓪.⓪.①",
               "①27.0.0.1", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "ⓛocalhost", "ｌｏｃａｌｈｏｓｔ", "example。com",
               "ℓocalhost", "loc𝒶lhost"]  # fmt: skip
BAD_HOSTS = ["", ":80", "localhost.", "example.com.", "127.0.0.1.", "example.com..", ".", "..",
             ".example.com", "a..b", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1", "::1", "[]",
             "[::1]x", "[::1]:x", "[127.0.0.1]", "[v1.a]", "[::1][::2]", "127%2e0%2e0%2e1",
             "%31%32%37.0.0.1", "local%68ost", "a:b", "a:80:80", "a:8_0", "a:+80", "a:８０",
             "a:080800", "a!b", "a,b", "a;b", "a'b", "a*b", "a$b", "x" * 64 + ".com", "[::127.1]",
             "[12345::]", "[1:2:3:4:5:6:7:8:9]"]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "words"),
    [(url, "must begin with http:// or https://") for url in NOT_HTTP]
    + [(url, "user name or password") for url in WITH_USER]
    + [(url, "spaces, control characters or backslashes") for url in WITH_SPACE]
    + [(f"http://{host}/", "host is not valid") for host in OTHER_NUMBERS + LOOK_ALIKES + BAD_HOSTS]
    + [(f"http://a:{port}/", "port must be between") for port in ("0", "00", "65536", "99999")]
    + [(f"http://{host}/", "own machine") for host in ("localhost", "LocalHost", "a.b.localhost")]
    + [("http://example.com/" + "x" * MAX_URL, f"longer than {MAX_URL}")],
)  # fmt: skip
def test_these_urls_are_refused_by_their_looks(url, words):
    with pytest.raises(InvalidRequest, match=words):
        Guard.check(url)


@pytest.mark.parametrize("url", [*WITH_USER[1:2], "https://user:password@[::1/", "x://u:password@"])
async def test_a_password_in_a_url_is_not_repeated(guard, url):
    message = await refused(guard(), url)
    assert "password@" not in message
    assert "user:" not in message


@given(st.text(max_size=30), st.sampled_from(["", "http://", "https://a", "http://[", "http://a:"]))
def test_any_text_is_a_url_or_is_refused(text, start):
    try:
        url = Guard.check(start + text)
    except InvalidRequest:
        return
    assert url.scheme in ("http", "https")
    assert url.user is url.password is None
    assert url.raw_host
    assert 1 <= url.port <= 65_535


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["{0}", "0x{0:x}", "0{0:o}", "{1}.{2}", "0x{1:x}.{2}"]),
)
def test_no_number_but_a_dotted_quad_is_a_host(number, form):
    host = form.format(number, number >> 24, number & 0xFF_FFFF)
    with pytest.raises(InvalidRequest):
        Guard.check(f"http://{host}/")


# Which addresses are forbidden.

FORBIDDEN_V4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
]  # fmt: skip
FORBIDDEN_V6 = [
    "::/128", "::1/128", "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/32",
    "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "4000::/3", "fc00::/7", "fe80::/10",
    "fec0::/10", "ff00::/8",
]  # fmt: skip
METADATA = {
    "AWS, Azure, Google, Huawei": "169.254.169.254", "Alibaba": "100.100.100.200",
    "Tencent": "169.254.0.23", "Oracle": "192.0.0.192", "Volcengine": "100.96.0.96",
    "AWS over IPv6": "fd00:ec2::254", "Google over IPv6": "fd20:ce::254",
    "Azure's host": "168.63.129.16",
}  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "9.255.255.255", "100.63.255.255", "100.128.0.0", "172.15.255.255",
          "172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
          "2606:4700::1111", "2400:3200::1", "2a00:1450:4001::1", "2001:200::1", "3ffe::1",
          "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]  # fmt: skip


def embedded(ip: IPv4Address) -> list[IPv6Address]:
    """`ip` in every form in which an IPv6 address embeds one."""
    number = int(ip)
    return [
        IPv6Address(0xFFFF << 32 | number),  # mapped
        IPv6Address(number),  # compatible
        IPv6Address(0xFFFF << 48 | number),  # translated
        IPv6Address(0x64_FF9B << 96 | number),  # NAT64
        IPv6Address(0x64_FF9B_0001 << 80 | number),  # NAT64 of a site
        IPv6Address(0x2002 << 112 | number << 80 | 1),  # 6to4
        IPv6Address(0x2001_0000 << 96 | number << 64),  # Teredo, its server
        IPv6Address(0x2001_0000 << 96 | 0x808_0808 << 64 | number ^ 0xFFFF_FFFF),  # its client
    ]


def addresses_in(networks: list[str]) -> st.SearchStrategy:
    return st.sampled_from(networks).flatmap(lambda n: st.ip_addresses(network=n))


def is_forbidden(ip, *allow: str) -> bool:
    return Guard(Fetch(allow=list(allow))).is_forbidden(ip_address(ip))


@given(addresses_in(FORBIDDEN_V4))
def test_every_non_public_address_is_forbidden_in_every_form(ip):
    assert is_forbidden(ip)
    for form in embedded(ip):
        assert is_forbidden(form), form


@given(addresses_in(FORBIDDEN_V6))
def test_every_ipv6_address_that_is_not_public_is_forbidden(ip):
    assert is_forbidden(ip)


@pytest.mark.parametrize("network", FORBIDDEN_V4 + FORBIDDEN_V6)
def test_the_ends_of_each_network_are_forbidden(network):
    assert is_forbidden(ip_network(network)[0])
    assert is_forbidden(ip_network(network)[-1])


@given(st.ip_addresses())
def test_what_python_knows_not_to_be_public_is_forbidden(ip):
    holds_another = (IPv6Address(ip) if ip.version == 6 else ip) in ip_network("2002::/16") or (
        ip.version == 6 and ip.ipv4_mapped is not None
    )
    assert ip.is_global or is_forbidden(ip) or holds_another


@given(st.ip_addresses(v=4), st.sampled_from([1, 4, 6, 7]))
def test_special_ipv6_forms_are_forbidden_whatever_they_embed(ip, form):
    assert is_forbidden(embedded(ip)[form])


@pytest.mark.parametrize("ip", PUBLIC)
def test_public_addresses_are_not_forbidden(ip):
    assert not is_forbidden(ip)


@pytest.mark.parametrize("ip", METADATA.values(), ids=METADATA)
def test_the_clouds_metadata_are_forbidden(ip):
    assert is_forbidden(ip)


@given(st.ip_addresses(v=4, network="10.1.0.0/16"))
def test_an_allowed_network_passes_and_so_do_its_mapped_forms(ip):
    mapped, *others = embedded(ip)
    for one in (ip, mapped):
        assert not is_forbidden(one, "10.1.0.0/16", "fd00::/8")
        assert is_forbidden(one, "10.2.0.0/16", "fd00::/8")
    assert all(is_forbidden(other, "10.1.0.0/16") for other in others)


def test_an_allowed_ipv6_network_passes():
    assert not is_forbidden("fd00::1", "10.0.0.0/8", "fd00::/8")
    assert is_forbidden("fc00::1", "10.0.0.0/8", "fd00::/8")


def test_allowing_loopback_excludes_the_unspecified_address():
    assert is_forbidden("0.0.0.0", *LOOPBACK)
    assert is_forbidden("::", *LOOPBACK)


# Refusals come before any connection.

INSIDE = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]",
          "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
          "10.0.0.1", "192.168.1.1", "[fe80::1]", "[fd00::1]", "255.255.255.255"]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
async def test_an_address_inside_is_never_connected_to(guard, trap, host):
    port, is_untouched = trap
    message = await refused(guard(), f"http://{host}:{port}/")
    assert PRIVATE in message
    assert "fetch.allow" in message
    assert is_untouched()


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"],
     ["2606:4700::1111", "::1"], ["::ffff:127.0.0.1"], ["64:ff9b::127.0.0.1"], ["0.0.0.0"],
     ["fe80::1%lo"], ["8.8.8.8", "8.8.4.4", "1.1.1.1", "10.0.0.1"]],
)  # fmt: skip
async def test_a_name_with_any_address_inside_is_never_connected_to(guard, trap, addresses):
    port, is_untouched = trap
    names = Names(files_test=[addresses])
    message = await refused(guard(names), f"http://files.test:{port}/")
    assert PRIVATE in message
    assert not any(address in message for address in addresses)
    assert is_untouched()


async def test_an_open_port_a_closed_port_and_no_host_look_the_same(guard, trap):
    port, is_untouched = trap
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = [port, closed.getsockname()[1]]
        messages = {await refused(guard(), f"http://127.0.0.1:{port}/") for port in ports}
    messages.add((await refused(guard(), "http://127.99.99.99/")).replace("99.99.99", "0.0.1"))
    assert len(messages) == 1
    assert is_untouched()


@pytest.mark.parametrize("answer", [[], ["nonsense"], ["2130706433"], ["8.8.8.8", ""]])
async def test_a_look_up_that_gives_no_addresses_is_refused(guard, answer):
    message = await refused(guard(Names(files_test=[answer])), "http://files.test/")
    assert message == "The URL's host files.test cannot be resolved; check its name."


async def test_an_unknown_name_is_refused(guard):
    assert "cannot be resolved" in await refused(guard(Names()), "http://nowhere.test/")


async def test_a_name_is_resolved_once_per_hop(guard, serve):
    """DNS rebinding: the first answer is checked, a second one would be connected to."""
    url = await serve({"/": gives(b"x"), "/again": leads_to("/")})
    url = url.replace("127.0.0.1", "files.test")
    names = Names(files_test=[["127.0.0.1"], ["10.0.0.1"]])
    one = guard(names, allow=LOOPBACK)
    assert await fetch(one, url) == b"x"
    assert names.asked == ["files.test"]

    names.answers = {"files.test": [["127.0.0.1"], ["10.0.0.1"]]}
    assert PRIVATE in await refused(one, f"{url}/again")
    assert names.asked == ["files.test"] * 3


async def test_a_server_that_closes_without_answer_is_not_retried(guard, stack):
    connections = []

    async def drop(reader, writer):
        connections.append(writer)

    url = f"http://files.test:{await stack.enter_async_context(listening(drop))}/"
    names = Names(files_test=[["127.0.0.1"], ["10.0.0.1"]])
    assert "broke off" in await refused(guard(names, allow=LOOPBACK), url)
    assert names.asked == ["files.test"]
    assert len(connections) == 1


async def test_no_connection_is_used_for_a_second_fetch(guard, serve):
    """It would go to the address that was checked then, not to the one checked now."""
    peers = []

    async def handler(request):
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(body=b"x")

    url = await serve({"/": handler})
    one = guard(allow=LOOPBACK)
    assert await fetch(one, url) == await fetch(one, url) == b"x"
    assert len(set(peers)) == 2


async def test_concurrent_fetches_keep_their_addresses_apart(guard, serve):
    urls = [await serve({"/": gives(b"%d" % i)}) for i in range(5)]
    names = Names(**{f"host{i}_test": [["127.0.0.1"]] for i in range(5)}, bad_test=[["10.0.0.1"]])
    one = guard(names, allow=LOOPBACK)
    named = [url.replace("127.0.0.1", f"host{i}.test") for i, url in enumerate(urls)]
    *bodies, message = await asyncio.gather(
        *(fetch(one, url) for url in named), refused(one, "http://bad.test/")
    )
    assert bodies == [b"%d" % i for i in range(5)]
    assert PRIVATE in message


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_to_another_allowed_host(guard, serve, status):
    there = await serve({"/final.bin": gives(b"there")})
    here = await serve({"/photo.png": leads_to(f"{there}/final.bin", status)})
    async with guard(allow=LOOPBACK).open(f"{here}/photo.png") as source:
        assert source.name == "photo.png"  # as the caller named it
        assert b"".join([chunk async for chunk in source.chunks]) == b"there"


@pytest.mark.parametrize("target", ["/b/c", "c", "./c", "../b/c", "//{host}/b/c", "/b/c#d", "/b/ü"])
async def test_a_relative_redirect_is_followed(guard, serve, target):
    async def start(request):
        return web.Response(status=302, headers={"Location": target.format(host=request.host)})

    url = await serve({"/b/a": start, "/b/{x}": gives(b"there")})
    assert await fetch(guard(allow=LOOPBACK), f"{url}/b/a") == b"there"


@pytest.mark.parametrize(
    ("target", "words"),
    [(f"http://{host}/", PRIVATE) for host in INSIDE if host[:4] not in ("127.", "[::f")]
    + [("//10.0.0.1/", PRIVATE), ("http://inside.test/", PRIVATE),
       ("file:///etc/passwd", "must begin"), ("gopher://127.0.0.1/", "must begin"),
       ("data:,x", "must begin"), ("http://2130706433/", "host is not valid"),
       ("http://0/", "host is not valid"), ("http://127.1/", "host is not valid"),
       ("http://user:secret@8.8.8.8/", "user name"), ("//a@8.8.8.8/", "user name"),
       ("http://localhost/", "own machine"), ("//localhost./", "host is not valid"),
       ("/a b", "spaces"), ("http://a\\@b/", "backslashes"), ("http://[::1/", "host is not valid")],
)  # fmt: skip
async def test_each_target_of_a_redirect_is_checked(guard, scripted, target, words):
    upstream = await scripted(
        Script(status="302 Found", headers={"Location": target}, chunked=False),
    )
    names = Names(inside_test=[["10.0.0.1"]])
    message = await refused(guard(names, allow=LOOPBACK), upstream.url)
    assert words in message
    assert "secret" not in message
    assert len(upstream.requests) == 1


async def test_three_redirects_are_followed_and_a_fourth_is_not(guard, serve):
    hops = {f"/{n}": leads_to(f"/{n - 1}") for n in range(1, 6)}
    url = await serve({**hops, "/0": gives(b"end")})
    one = guard(allow=LOOPBACK)
    assert await fetch(one, f"{url}/3") == b"end"
    assert "redirects more than 3 times" in await refused(one, f"{url}/4")


async def test_a_loop_of_redirects_ends(guard, scripted):
    upstream = await scripted(
        Script(status="302 Found", headers={"Location": ""}, chunked=False),
    )
    assert "more than 3 times" in await refused(guard(allow=LOOPBACK), upstream.url)
    assert len(upstream.requests) == 4


async def test_the_body_of_a_redirect_is_not_read(guard, serve, scripted):
    url = await serve({"/": gives(b"end")})
    headers = {"Location": url, "Content-Encoding": "gzip"}
    upstream = await scripted(Script([b"x"], "302 Found", headers, end="hang"))
    assert await fetch(guard(allow=LOOPBACK), upstream.url) == b"end"


@pytest.mark.parametrize("headers", [{}, {"Locatio": "http://127.0.0.1/"}])
async def test_a_redirect_to_nowhere_is_refused(guard, scripted, headers):
    upstream = await scripted(Script(status="302 Found", headers=headers))
    assert "answers 302" in await refused(guard(allow=LOOPBACK), upstream.url)


# TLS: checked against the name that the caller gave.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A file with the key and the certificate of files.test, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "files.test.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(pem)
    )
    return str(path)


@pytest.fixture
async def https(serve, certificate):
    """(URL of a server with the certificate, names that resolve to it)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    plain = await serve({"/": gives(b"plain")})
    url = await serve({"/": gives(b"secret"), "/down": leads_to(plain)}, context)
    return url, Names(files_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])


@pytest.fixture
def trusted(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate)  # the system's, for OpenSSL


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_must_be_of_the_name_that_was_asked_for(guard, https):
    url, names = https
    one = guard(names, allow=LOOPBACK)
    assert await fetch(one, url.replace("127.0.0.1", "files.test")) == b"secret"
    for host in ("other.test", "127.0.0.1"):
        assert "TLS certificate" in await refused(one, url.replace("127.0.0.1", host))


async def test_an_untrusted_certificate_is_refused(guard, https):
    url, names = https
    one = guard(names, allow=LOOPBACK)
    assert "TLS certificate" in await refused(one, url.replace("127.0.0.1", "files.test"))


@pytest.mark.usefixtures("trusted")
async def test_a_redirect_from_https_to_http_is_refused(guard, https):
    url, names = https
    url = url.replace("127.0.0.1", "files.test") + "/down"
    assert "from https to http" in await refused(guard(names, allow=LOOPBACK), url)


# Size.


async def test_a_file_of_just_the_limit_passes(guard, serve, scripted):
    url = await serve({"/": gives()})
    upstream = await scripted(Script([FILE], headers={}))
    one = guard(allow=LOOPBACK, max_size=len(FILE))
    assert await fetch(one, url) == await fetch(one, upstream.url) == FILE


async def test_a_length_over_the_limit_is_refused_before_the_body(guard, scripted):
    upstream = await scripted(
        Script(headers={"Content-Length": "1001"}, chunked=False, end="hang"),
    )
    message = await refused(guard(allow=LOOPBACK, max_size=1000), upstream.url, BodyTooLarge)
    assert message == "The URL's file is larger than 1000 bytes; use a smaller one."


async def test_a_body_without_a_length_is_stopped_at_the_limit(guard, scripted):
    upstream = await scripted(Script([b"x" * 600] * 1000, headers={}, end="hang"))
    read = 0
    with pytest.raises(BodyTooLarge):
        async with guard(allow=LOOPBACK, max_size=1000).open(upstream.url) as source:
            assert source.size is None
            async for chunk in source.chunks:
                read += len(chunk)
    assert read <= 1000


async def test_a_small_length_does_not_hide_a_long_body(guard, scripted):
    """Both framings together: HTTP says that the chunks count, and so does the limit."""
    upstream = await scripted(Script([b"x" * 600] * 10, headers={"Content-Length": "5"}))
    one = guard(allow=LOOPBACK, max_size=1000)
    with pytest.raises((BodyTooLarge, InvalidRequest)):
        await fetch(one, upstream.url)


# Answers that are no file, or an incomplete one.


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content", "304 Not Modified",
                                    "401 Unauthorized", "404 Not Found", "500 Oops"])  # fmt: skip
async def test_no_status_but_200_is_a_file(guard, scripted, status):
    upstream = await scripted(Script([], status, {"Content-Length": "0"}, chunked=False))
    message = await refused(guard(allow=LOOPBACK), upstream.url)
    assert message == f"The URL's server answers {status[:3]}, not 200; check the URL."


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x", "identity, gzip", "GZIP"])
async def test_a_compressed_file_is_refused_as_it_may_be_a_bomb(guard, scripted, coding):
    upstream = await scripted(Script([b"\x1f\x8b"], headers={"Content-Encoding": coding}))
    assert "compressed" in await refused(guard(allow=LOOPBACK), upstream.url)


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
async def test_identity_is_no_compression(guard, scripted, coding):
    upstream = await scripted(Script([b"x"], headers={"Content-Encoding": coding}))
    assert await fetch(guard(allow=LOOPBACK), upstream.url) == b"x"


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "identity"])
async def test_a_transfer_coding_but_chunked_is_refused(guard, scripted, coding):
    upstream = await scripted(Script([b"x"], headers={"Transfer-Encoding": coding}, chunked=False))
    await refused(guard(allow=LOOPBACK), upstream.url)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    "script",
    [{"headers": {"Content-Length": "10"}, "chunked": False},
     {"headers": {"Transfer-Encoding": "chunked"}, "chunked": False}],
)  # fmt: skip
async def test_a_body_cut_short_is_an_error_and_no_shorter_file(guard, scripted, script, end):
    piece = b"5\r\nabcde\r\n" if "Transfer-Encoding" in script["headers"] else b"abcde"
    upstream = await scripted(Script([piece, 0.02], end=end, **script))
    read = b""
    with pytest.raises(InvalidRequest, match="broke off the connection"):
        async with guard(allow=LOOPBACK).open(upstream.url) as source:
            async for chunk in source.chunks:
                read += chunk
    assert read in (b"", b"abcde")


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_body_that_ends_with_its_connection_is_refused(guard, scripted, end):
    """Nothing shows whether it was cut."""
    upstream = await scripted(Script([b"abc"], headers={}, chunked=False, end=end))
    one = guard(allow=LOOPBACK)
    message = await refused(one, upstream.url)
    if end == "close":
        assert "does not tell the file's length" in message


@pytest.mark.parametrize(
    "headers",
    [{"X-Long": "x" * 100_000}, {f"X-{i}": "x" * 1000 for i in range(1000)},
     {"Content-Length": "-1"}, {"Content-Length": "1e3"}, {"Bad\x01Name": "x"}],
)  # fmt: skip
async def test_headers_that_are_huge_or_broken_are_refused(guard, scripted, headers):
    upstream = await scripted(Script([b"x"], headers=headers, chunked=False))
    await refused(guard(allow=LOOPBACK, max_size=1000, timeout=0.5), upstream.url)


async def test_what_is_not_http_is_refused(guard, stack):
    async def serve(reader, writer):
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    url = f"http://127.0.0.1:{await stack.enter_async_context(listening(serve))}/"
    assert "SSH" not in await refused(guard(allow=LOOPBACK), url)


async def test_an_allowed_host_that_does_not_listen_is_reported(guard):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        assert "No connection" in await refused(guard(allow=LOOPBACK), url)


# Time: one limit for the whole fetch.

SLOW = "took longer than 0.1 s"


@pytest.mark.parametrize(
    "script",
    [Script(before_headers_s=3600), Script([b"x"], headers={}, end="hang"),
     Script([b"x", 0.03] * 1000, headers={})],
    ids=["headers", "body", "drip"],
)  # fmt: skip
async def test_a_slow_answer_is_cut_off(guard, scripted, script):
    upstream = await scripted(script)
    assert SLOW in await refused(guard(allow=LOOPBACK, timeout=0.1), upstream.url)


async def test_slow_redirects_share_one_limit(guard, scripted):
    found = Script([], "302 Found", {"Location": "/"}, chunked=False, before_headers_s=0.04)
    upstream = await scripted(found)
    assert SLOW in await refused(guard(allow=LOOPBACK, timeout=0.1), upstream.url)


async def test_a_slow_look_up_is_cut_off(guard):
    async def never(host, port, owner):
        await asyncio.Event().wait()

    assert SLOW in await refused(guard(never, timeout=0.1), "http://files.test/")


async def test_a_slow_reader_gets_no_chunk_past_the_limit(guard, serve):
    url = await serve({"/": gives()})
    async with guard(allow=LOOPBACK, timeout=0.1).open(url) as source:
        assert await anext(source.chunks)
        await asyncio.sleep(0.15)
        with pytest.raises(InvalidRequest, match=SLOW):
            await anext(source.chunks)


# A reader that stops early leaves nothing open.


async def test_leaving_early_ends_the_connection(guard, scripted):
    upstream = await scripted(Script([b"x"], headers={}, end="hang"))
    async with guard(allow=LOOPBACK).open(upstream.url) as source:
        assert await anext(source.chunks) == b"x"
    await asyncio.wait_for(upstream.gone.wait(), 20)


async def test_an_error_of_the_reader_is_its_own(guard, serve):
    url = await serve({"/": gives()})
    with pytest.raises(ValueError, match="mine"):
        async with guard(allow=LOOPBACK).open(url):
            raise ValueError("mine")


async def test_cancelling_a_fetch_is_no_error_of_the_url(guard, scripted):
    upstream = await scripted(Script([b"x"], headers={}, end="hang"))
    task = asyncio.ensure_future(fetch(guard(allow=LOOPBACK), upstream.url))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.gone.wait(), 20)


async def test_the_chunks_end_with_the_block(guard, serve):
    url = await serve({"/": gives()})
    async with guard(allow=LOOPBACK).open(url) as source:
        assert await anext(source.chunks)
    async with aclosing(source.chunks) as chunks:
        assert [chunk async for chunk in chunks] == []


# The four fixes of new-api's filter.


async def test_cve_2025_59146_a_media_url_reaches_the_inside(guard, trap):
    port, is_untouched = trap
    assert PRIVATE in await refused(guard(), f"http://127.0.0.1:{port}/x.png")
    assert PRIVATE in await refused(guard(), "http://169.254.169.254/latest/meta-data/")
    assert is_untouched()


async def test_cve_2025_62155_a_redirect_passes_the_filter(guard, serve):
    url = await serve({"/x.png": leads_to("http://169.254.169.254/latest/meta-data/")})
    assert PRIVATE in await refused(guard(allow=LOOPBACK), f"{url}/x.png")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "0"])
async def test_cve_2026_42339_the_unspecified_address_is_this_machine(guard, trap, host):
    port, is_untouched = trap
    await refused(guard(), f"http://{host}:{port}/")
    await refused(guard(allow=LOOPBACK), f"http://{host}:{port}/")
    assert is_untouched()


async def test_ghsa_6qcr_qxgr_m7fv_names_pass_a_filter_of_addresses(guard, trap):
    port, is_untouched = trap
    names = Names(public_example=[["127.0.0.1"]])
    assert PRIVATE in await refused(guard(names), f"http://public.example:{port}/")
    assert names.asked == ["public.example"]
    assert is_untouched()
