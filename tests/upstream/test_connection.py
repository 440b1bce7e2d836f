"""One connection to an upstream, and everything that a server can do to it."""

import asyncio
import gzip
import zlib

import pytest
from test_client import Echo

from gateway.config.outgoing import DIRECT
from gateway.upstream.connection import BULK, MAX_HEAD, AnswerCut, Connection, NoAnswer, NotHttp
from gateway.upstream.fairness import OneATurn
from gateway.upstream.pool import IDLE_S, Pool, address_of

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Line:
    """A transport that records its writes."""

    def __init__(self) -> None:
        self.written = b""
        self.is_paused = self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True

    close = abort

    def get_extra_info(self, name: str) -> None:
        return None


class Freed:
    def __init__(self) -> None:
        self.pool: list[Connection] = []

    def __call__(self, connection: Connection) -> None:
        self.pool.append(connection)


def connected() -> tuple[Connection, Line, Freed]:
    freed, line = Freed(), Line()
    connection = Connection(freed, OneATurn(asyncio.get_running_loop()))
    connection.connection_made(line)  # type: ignore[arg-type]
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    return connection, line, freed


async def whole(connection: Connection) -> bytes:
    await connection.answered()
    out = b""
    while chunk := await connection.read():
        out += chunk
    return out


CHUNKED = HEAD + b"5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\nTrailer: 1\r\n\r\n"
ANSWERS = {
    "in chunks": CHUNKED,
    "of a known length": b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world",
    "after an interim answer": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED,
    "whose head has bare line feeds": HEAD.replace(b"\r\n", b"\n") + CHUNKED[len(HEAD) :],
}


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_an_answer_is_the_same_in_pieces_of_any_size(raw, size):
    connection, _, freed = connected()
    for at in range(0, len(raw), size):
        connection.data_received(raw[at : at + size])
    assert await whole(connection) == b"hello, world"
    assert connection.status == 200
    connection.release()
    assert freed.pool == [connection]


async def test_an_answer_without_a_length_ends_with_the_connection():
    connection, _, _ = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    reading = asyncio.ensure_future(whole(connection))
    await asyncio.sleep(0)
    connection.connection_lost(None)
    assert await reading == b"hello"


@pytest.mark.parametrize("after", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_a_connection_that_ends_early_gave_no_answer(after):
    connection, _, _ = connected()
    connection.data_received(after)
    connection.connection_lost(ConnectionResetError())
    with pytest.raises(NoAnswer):
        await connection.answered()
    with pytest.raises(NoAnswer):
        connection.send(b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("at", range(len(HEAD), len(CHUNKED)))
async def test_a_cut_inside_the_body_is_never_an_end(at):
    connection, _, _ = connected()
    connection.data_received(CHUNKED[:at])
    connection.connection_lost(None)
    with pytest.raises(AnswerCut):
        await whole(connection)


async def test_what_came_before_a_cut_is_read_first():
    connection, _, _ = connected()
    connection.data_received(HEAD + b"5\r\nhello\r\n")
    connection.connection_lost(ConnectionResetError())
    await connection.answered()
    assert await connection.read() == b"hello"
    with pytest.raises(AnswerCut):
        await connection.read()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"<html>",
        HEAD + b"zz\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD,
    ],
)
async def test_bad_http_is_an_error_and_ends_the_connection(raw):
    connection, line, _ = connected()
    for at in range(0, len(raw), 4096):
        connection.data_received(raw[at : at + 4096])
    with pytest.raises(NotHttp):
        await whole(connection)
    assert line.is_closed


@pytest.mark.parametrize("squeeze", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
async def test_unrequested_compression_is_undone(squeeze):
    body = squeeze(b"hello, world")
    encoding = b"gzip" if squeeze is gzip.compress else b"deflate"
    connection, _, _ = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\n" % encoding)
    connection.data_received(b"Content-Length: %d\r\n\r\n" % len(body))
    for at in range(len(body)):
        connection.data_received(body[at : at + 1])
    assert await whole(connection) == b"hello, world"


async def test_a_bomb_does_not_go_off():
    bomb = gzip.compress(b"\0" * (64 << 20))
    connection, _, _ = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + bomb)
    with pytest.raises(NotHttp):
        await whole(connection)


async def test_an_upstream_waits_for_a_reader_who_does_not_read():
    connection, line, _ = connected()
    connection.data_received(HEAD)
    await connection.answered()
    fed = 0
    while not line.is_paused:
        connection.data_received(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        fed += 0x4000
    assert fed <= 512 << 10
    assert len(await connection.read()) == fed
    assert not line.is_paused


async def test_an_unrequested_answer_ends_the_connection():
    connection, line, freed = connected()
    connection.data_received(CHUNKED)
    assert await whole(connection) == b"hello, world"
    connection.release()
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert line.is_closed
    assert freed.pool == [connection]


async def test_what_follows_the_end_takes_nothing_back():
    connection, line, _ = connected()
    connection.data_received(CHUNKED + b"HTTP/1.1 200 OK\r\n\r\n")
    assert await whole(connection) == b"hello, world"
    assert line.is_closed


async def test_a_connection_that_the_server_will_close_is_not_kept():
    connection, line, freed = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    assert await whole(connection) == b"ok"
    connection.release()
    assert line.is_closed
    assert freed.pool == []


async def test_leaving_early_ends_the_connection():
    connection, line, _ = connected()
    connection.data_received(HEAD + b"5\r\nhello\r\n")
    connection.release()
    assert line.is_closed


async def test_the_end_is_awaited_in_the_background():
    connection, line, freed = connected()
    connection.data_received(HEAD + b"5\r\nhello\r\n")
    connection.finish(60)
    assert freed.pool == []
    connection.data_received(b"0\r\n\r\n")
    assert freed.pool == [connection]
    assert not line.is_closed


async def test_a_listener_gets_queued_and_new_bytes_and_the_end():
    connection, _, _ = connected()
    connection.data_received(HEAD + b"5\r\nhello\r\n")
    got: list[bytes] = []
    connection.listen(got.append)
    connection.data_received(b"1\r\n,\r\n2\r\n w\r\n")
    connection.data_received(b"0\r\n\r\n")
    assert got == [b"hello", b", w", b""]


async def test_after_much_in_one_read_the_other_upstreams_come_first():
    bulk = OneATurn(asyncio.get_running_loop())
    lines = [Line() for _ in range(3)]
    pool = []
    for line in lines:
        pool.append(connection := Connection(Freed(), bulk))
        connection.connection_made(line)  # type: ignore[arg-type]
        connection.send(b"GET / HTTP/1.1\r\n\r\n")
        connection.data_received(HEAD)
    assert [line.is_paused for line in lines] == [False] * 3
    for connection in pool:
        connection.data_received(b"%x\r\n%b\r\n" % (BULK, b"a" * BULK))
    assert [line.is_paused for line in lines] == [True] * 3
    pool[1].pause()  # since its caller does not read
    for paused in ([False, True, True], [False, True, True], [False, True, False]):
        await asyncio.sleep(0)
        assert [line.is_paused for line in lines] == paused
    pool[1].resume()
    assert not lines[1].is_paused


async def test_of_a_header_that_comes_twice_the_first_counts():
    connection, _, _ = connected()
    twice = b"Content-Type: text/html\r\ncontent-type: text/event-stream\r\n"
    connection.data_received(b"HTTP/1.1 200 OK\r\n" + twice + b"Content-Length: 0\r\n\r\n")
    assert connection.kind == connection.headers["Content-Type"] == "text/html"


async def test_headers_are_kept_until_somebody_listens():
    connection, _, _ = connected()
    connection.data_received(HEAD)
    assert connection.headers["transfer-encoding"] == "chunked"
    connection.listen(lambda chunk: None)
    assert not connection.headers


@pytest.mark.parametrize(
    ("split", "offered"),
    [
        ([b"3\r\nabc\r\n", b"3\r\ndef\r\n"], [b"3\r\nabc\r\n", b"3\r\ndef\r\n"]),
        ([b"3\r\nabc\r\n3", b"\r\ndef\r\n"], [b"3\r\nabc\r\n3"]),
        ([b"3\r\nab", b"c\r\n", b"3\r\ndef\r\n"], [b"3\r\nab", b"3\r\ndef\r\n"]),
        ([b"3\r\nabc", b"\r\n", b"3\r\ndef\r\n"], [b"3\r\nabc", b"3\r\ndef\r\n"]),
        ([b"6\r\nabc\r\n", b"x\r\n", b"3\r\ndef\r\n"], [b"6\r\nabc\r\n", b"3\r\ndef\r\n"]),
    ],
)
async def test_the_fast_path_gets_reads_only_between_chunks(split, offered):
    connection, _, _ = connected()
    connection.data_received(HEAD + b"1\r\n.\r\n")
    seen: list[bytes] = []
    connection.listen(lambda chunk: None)
    for data in split:
        connection.fast_path = lambda data: bool(seen.append(data))
        connection.data_received(data)
    assert seen == offered


async def test_connections_are_reused_but_not_kept_for_long():
    server = Echo()
    pool, origin = Pool(), address_of(await server.start()).origin
    for _ in range(3):
        connection = pool.kept(origin, DIRECT) or await pool.connect(origin)
        connection.send(b"GET /path HTTP/1.1\r\n\r\n")
        await connection.answered()
        assert await connection.read() == b"/path"
        connection.release()
    assert server.connections == 1
    assert IDLE_S < 5  # what uvicorn and Node keep theirs for
    connection.idle_since -= IDLE_S
    pool._close_idle()
    assert pool.kept(origin, DIRECT) is None
    pool.close()
    await server.stop()


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("http://a.example", "a.example", "/"),
        ("https://a.example:8443/x?y=1", "a.example:8443", "/x?y=1"),
        ("http://[::1]:80/v1", "[::1]", "/v1"),
        ("http://例子.测试/路", "xn--fsqu00a.xn--0zwm56d", "/%E8%B7%AF"),
    ],
)
def test_a_url_is_what_a_request_needs(url, host, target):
    address = address_of(url)
    assert (address.host, address.target) == (host, target)
