"""What is shipped with the code: the image, docker-compose.yml and the Kubernetes manifests.

The tests parse the files themselves. Where kubectl or docker compose are installed, those read
them, too.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gateway
from gateway.cli import _COMMANDS as COMMANDS
from gateway.config import load as configfile

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "config/kubernetes"
OVERLAYS = ("sidecar", "deployment")
# the oldest version that the README names
VERSIONS = ("1.30", kubernetes_validate.latest_version())
A_SECRET = "0123456789abcdef" * 4


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def setup_cfg() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    return setup


DISTRIBUTION = setup_cfg()["metadata"]["name"]


def seconds(duration: str | float) -> float:
    match = re.fullmatch(r"([0-9.]+)(s|m|)", str(duration))
    return float(match[1]) * (60 if match[2] == "m" else 1)


def variables(name: str) -> set[str]:
    """The ${NAME}s of a YAML file, without its comments."""
    return set(re.findall(r"\$\{([A-Z0-9_]+)", str(yaml.safe_load(text(name)))))


# --- the locks ------------------------------------------------------------------------------------


LOCKS = [
    "requirements.lock",
    "requirements-run.lock",
    "requirements-traces.lock",
    "requirements-bench.lock",
    "requirements-docs.lock",
]


def lock(name: str) -> dict[str, Requirement]:
    lines = [line.removesuffix(" \\") for line in text(name).splitlines() if line[:1].isalnum()]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def wanted(option: str, section: str = "options.extras_require") -> dict[str, Requirement]:
    lines = setup_cfg()[section][option].split("\n")
    return {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}


def test_the_image_gets_the_versions_that_the_tests_run_with():
    both = lock("requirements.lock")
    for name, requirement in lock("requirements-run.lock").items():
        assert str(both[name].specifier) == str(requirement.specifier), name
        assert str(requirement.specifier).startswith("=="), name


@pytest.mark.parametrize("name", LOCKS)
def test_each_locked_package_has_the_hashes_of_its_files(name):
    entries = re.split(r"\n(?=[A-Za-z0-9])", text(name).partition("\n#    make lock\n")[2])
    assert len(entries) >= len(lock(name))  # another version for an older Python
    for entry in entries:
        hashes = entry.split("\n")[1:]
        assert [h for h in hashes if not re.fullmatch(r"    --hash=sha256:\w{64}( \\)?|", h)] == []
        assert "--hash" in entry, entry


def recipe_of(target: str) -> str:
    return text("Makefile").partition(f"\n{target}:")[2].partition("\n\n")[0]


def test_make_run_installs_only_what_running_needs():
    assert recipe_of("run").startswith(" $(RUN) ")
    recipe = recipe_of("$(RUN)")
    assert re.findall(r"-r (\S+)", recipe) == ["requirements-run.lock"]
    assert "--require-hashes" in recipe
    assert '@echo "Installing' in recipe
    assert "PIP_INDEX_URL" in text("README.md")
    assert "PIP_INDEX_URL" in text("README.zh-CN.md")


@pytest.mark.parametrize(("exit_code", "made"), [(0, True), (1, False)])
def test_make_names_each_package_and_fails_with_pip(tmp_path, exit_code, made):
    for name in ("Makefile", "requirements-run.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n[ "$2" = pip ] || exit 0\n'
        "echo 'Collecting aiohttp==3 (from -r requirements-run.lock)'; echo '  Downloading it'\n"
        f"echo 'Processing /a/folder/yarl-1-py3.whl (from -r …)'; exit {exit_code}\n"
    )
    python.chmod(0o755)
    make = subprocess.run(
        ["make", "--silent", ".venv/.installed-run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert make.stdout.splitlines()[1:] == ["  aiohttp==3", "  yarl-1-py3.whl"]
    assert (make.returncode == 0, (tmp_path / ".venv/.installed-run").exists()) == (made, made)


def test_make_wheel_needs_the_locked_setuptools_alone():
    recipe = recipe_of("wheel")
    assert "$(STAMP)" not in recipe
    assert "--require-hashes" in recipe
    (only_setuptools,) = re.findall(r"@(awk .*) >", recipe)
    made = subprocess.run(
        ["sh", "-c", only_setuptools.replace("$$", "$")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.findall(r"^\S.*", made, re.MULTILINE) == [
        f"{lock('requirements.lock')['setuptools']} \\"
    ]
    assert "--hash=sha256:" in made


def test_make_install_uses_locked_files_only():
    recipe = recipe_of("$(STAMP)")
    assert "--require-hashes -r requirements.lock" in recipe
    assert "--no-deps --no-build-isolation --editable ." in recipe
    assert "setuptools" in lock("requirements.lock")  # that build needs it


def test_the_run_lock_has_what_running_needs_and_no_more():
    locked, todo = lock("requirements-run.lock"), wanted("install_requires", "options")
    for name, requirement in todo.items():
        version = str(locked[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), name
    needed: set[str] = set()
    while todo:
        name, requirement = todo.popitem()
        if name in needed or (requirement.marker and not requirement.marker.evaluate()):
            continue
        needed.add(name)
        for line in metadata.requires(name) or []:
            other = Requirement(line)
            if other.marker is None or any(
                other.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                todo[canonicalize_name(other.name)] = other
    assert needed - locked.keys() == set()
    assert locked.keys() & wanted("test").keys() == set()


def test_make_lock_writes_both():
    recipe = recipe_of("lock")
    assert re.findall(r"--output-file (\S+)", recipe) == [
        "requirements.lock",
        "requirements-run.lock",
        "requirements-traces.lock",
    ]
    assert "--generate-hashes" in text("Makefile").partition("\nCOMPILE")[2]
    assert "--constraint requirements.lock" in recipe


# --- the image ------------------------------------------------------------------------------------


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each a list of (instruction, rest); lines before FROM belong to the
    first."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.lstrip().startswith("#")]
    out: list[list[tuple[str, str]]] = [[]]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            if instruction == "FROM":
                out.append([])
            out[-1].append((instruction, rest.strip()))
    return [out[0] + out[1], *out[2:]]


def only(stage: list[tuple[str, str]], instruction: str) -> str:
    found = [rest for name, rest in stage if name == instruction]
    assert len(found) == 1, (instruction, found)
    return found[0]


def copied() -> list[tuple[str, str]]:
    """(source in the repository, target) of every copied file and folder."""
    pairs, folder = [], "/"
    for stage in stages():
        for instruction, rest in stage:
            if instruction == "WORKDIR":
                folder = rest
            elif instruction == "COPY" and "--from" not in rest:
                *sources, target = shlex.split(rest)
                for source in sources:
                    to = PurePosixPath(folder) / target
                    pairs.append((source, str(to / source if target.endswith("/") else to)))
    return pairs


def entrypoint() -> list[str]:
    return json.loads(only(stages()[-1], "ENTRYPOINT"))


def test_the_image_is_built_in_one_stage_and_run_in_another():
    first, last = stages()
    assert any("pip" in rest for name, rest in first if name == "RUN")
    for name, rest in last:
        tools = r"\b(apt|apt-get|apk|dpkg|pip|uv|gcc|curl|wget)\b"
        assert name not in ("RUN", "ADD") or not re.search(tools, rest), rest
    assert "--no-cache-dir" in str(first)
    assert "--only-binary :all:" in str(first)


def test_the_image_is_not_root_and_says_so_as_a_number():
    last = stages()[-1]
    assert only(last, "USER") == "65532:65532"
    names = [name for name, _ in last]
    assert "RUN" not in names[names.index("USER") :]
    assert only(last, "VOLUME") == "/app/data"
    assert any("--chown=65532:65532 /app/data" in rest for name, rest in last if name == "COPY")


def test_the_image_runs_any_command_and_has_a_health_check():
    last = stages()[-1]
    assert json.loads(only(last, "CMD")) == ["serve"]
    assert {"serve", "probe"} <= COMMANDS.keys()
    options, _, command = only(last, "HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == [*entrypoint(), "probe"]
    times = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    assert seconds(times["timeout"]) > 5  # the probe's own timeout
    assert seconds(times["interval"]) >= 30  # each probe starts a Python process
    assert only(last, "STOPSIGNAL") == "SIGTERM"


def test_the_image_listens_to_all_and_writes_no_bytecode():
    env = dict(pair.split("=", 1) for pair in shlex.split(only(stages()[-1], "ENV")))
    assert (
        env.items() >= {"HOST": "0.0.0.0", "PORT": "3000", "PYTHONDONTWRITEBYTECODE": "1"}.items()
    )
    assert only(stages()[-1], "EXPOSE") == env["PORT"]


def test_the_images_labels_and_tags_have_this_version():
    last = stages()[-1]
    assert f"VERSION={gateway.__version__}" in [rest for name, rest in last if name == "ARG"]
    assert "org.opencontainers.image.licenses=Apache-2.0" in shlex.split(only(last, "LABEL"))
    pattern = r"(?:newTag: |/ai-gateway:)(\d[\w.]*)"
    tags = [re.findall(pattern, path.read_text("utf-8")) for path in KUBERNETES.rglob("*.*")]
    assert sum(map(len, tags)) >= 9
    assert {tag for found in tags for tag in found} == {gateway.__version__}


def test_the_traces_extra_can_be_had_in_the_image():
    run = next(rest for name, rest in stages()[0] if name == "RUN" and "TRACES" in rest)
    assert 'if [ -n "$TRACES" ]; then lock=traces; else lock=run; fi' in run
    assert '--require-hashes --requirement "/tmp/requirements-$lock.lock"' in run
    tested, traced = lock("requirements.lock"), lock("requirements-traces.lock")
    assert wanted("traces").keys() | lock("requirements-run.lock").keys() <= traced.keys()
    assert {n: str(r.specifier) for n, r in traced.items()} == {
        name: str(tested[name].specifier) for name in traced
    }


# Tools that may be installed by name; everything else comes from a lock or the checkout.
TOOLS = {"uv"}


def pip_installs(line: str) -> list[str]:
    """The names of packages that a line installs from an index."""
    found = re.search(r"pip3?(?: --python \S+)? install\b(?P<rest>[^`|&;#)]*)", line)
    words = re.findall(r"""[^\s'",]+""", found["rest"]) if found else []
    names, follows = [], ""
    for word in words:
        if not (follows or word.startswith(("-", ".", "/", "$", "<")) or word.endswith(".lock")):
            names.append(word)
        takes_value = ("-r", "-c", "--requirement", "--constraint", "--only-binary", "--python")
        follows = word if word in takes_value else ""
    return [name for name in names if re.fullmatch(r"[A-Za-z][\w.\-]*(\[.*\])?(==.*)?", name)]


def texts() -> list[tuple[str, str]]:
    """(name, text) of every file in the repository that people read."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    out = []
    for name in files.stdout.decode().split("\0"):
        if not name or name.endswith((".lock", ".png", ".svg")) or not (ROOT / name).exists():
            continue
        try:
            out.append((name, text(name)))
        except UnicodeDecodeError:
            continue
    return out


def test_no_text_tells_anybody_to_install_a_strangers_package():
    wrong = []
    for name, words in texts():
        if name != "tests/test_shipping.py":
            for line in words.splitlines():
                wrong += [f"{name}: {n}" for n in pip_installs(line) if n not in TOOLS]
    assert wrong == []


def test_the_distributions_name_is_in_setup_cfg_alone():
    """Nothing is published under it yet, and until then it may become a stranger's. The product is
    AI Gateway, the package `gateway`, the command `ai-gateway`."""
    form = re.compile(re.sub("-", "[-_.]+", re.escape(DISTRIBUTION).replace(r"\-", "-")), re.I)
    assert form.search(DISTRIBUTION)
    assert [name for name, words in texts() if form.search(words)] == ["setup.cfg"]
    assert {DISTRIBUTION, f"{DISTRIBUTION}[traces]"}.isdisjoint(TOOLS)
    assert pip_installs(f"pip install {DISTRIBUTION}") == [DISTRIBUTION]


@pytest.mark.parametrize(
    ("line", "names"),
    [("pip install 'ai-agent-gateway[traces]'", ["ai-agent-gateway[traces]"]),
     ("`pip install ai-gateway` and run", ["ai-gateway"]), ("pip install --upgrade foo", ["foo"]),
     ("(pip install uv)", ["uv"]), ("pip install -r requirements.lock", []),
     (".venv/bin/pip install --no-deps -e .", []), ("pip install '.[traces]'", [])],
)  # fmt: skip
def test_packages_in_a_line_are_seen(line, names):
    assert pip_installs(line) == names


def test_only_what_the_image_is_made_of_is_sent_to_the_builder():
    rules = [line for line in text(".dockerignore").splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule[0] == "!"} == {source for source, _ in copied()}
    assert {"**/__pycache__", "**/*.pyc"} <= set(rules)


def images() -> list[str]:
    out = [m[1] for m in re.finditer(r"^ARG PYTHON_IMAGE=(\S+)", text("Dockerfile"), re.M)]
    out += [str(service["image"]) for service in compose()["services"].values()]
    for overlay in OVERLAYS:
        out += [c["image"] for _, pod in pods(overlay) for c in containers(pod)]
    return [re.sub(r"^\$\{[A-Z_]+:-(.*)\}$", r"\1", image) for image in out]


def test_images_are_pinned_and_name_no_private_registry():
    assert all(r.startswith("${PYTHON_IMAGE}") for s in stages() for n, r in s if n == "FROM")
    for image in images():
        host, _, _ = image.rpartition("/")
        assert "." not in host, image
        assert ":" not in host, image
        if image not in ("ai-gateway", ""):  # built here; the operator's own
            assert re.search(r":[A-Za-z]*\.?[0-9]", image), image


@pytest.fixture
def tree(tmp_path):
    """The files that COPY puts into the image's /app; only `data` may be written."""
    for source, target in copied():
        assert (ROOT / source).exists(), source
        to = tmp_path / target.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / source, to, ignore=ignored)
        else:
            shutil.copy(ROOT / source, to)
    app = tmp_path / "app"
    (app / "data").mkdir()
    for path in (app, *app.rglob("*")):
        if path != app / "data":
            path.chmod(path.stat().st_mode & ~0o222)
    yield app
    for path in (app, *app.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def run_in(tree: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **environ}
    command = tuple(sys.executable if word == "python" else word for word in command)
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=50)


def test_what_is_copied_is_all_that_running_needs(tree):
    before = set(tree.rglob("*"))
    told = run_in(tree, "python", "-c", "import gateway; print(gateway.__file__)")
    assert Path(told.stdout.strip()).is_relative_to(tree), told
    told = run_in(tree, *entrypoint(), "check", HOST="0.0.0.0")
    assert (told.returncode, told.stderr) == (0, "")
    told = run_in(tree, *entrypoint(), "migrate")
    assert told.returncode == 0, told.stderr
    told = run_in(tree, *entrypoint(), "init", "--config", "data/config.yaml")
    assert told.returncode == 0, told.stderr
    assert (tree / "data/gateway.db").exists()
    new = set(tree.rglob("*")) - before  # root may write read-only files, and is noticed here
    assert [path for path in new if not path.is_relative_to(tree / "data")] == []


ONLY_THESE = """
import importlib, importlib.abc, pkgutil, sys
from importlib import metadata

allowed = set(sys.argv[1].split(","))
known = metadata.packages_distributions()

class Others(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        owners = {re_name(owner) for owner in known.get(name.partition(".")[0], [])}
        if owners and not owners & allowed:
            raise ModuleNotFoundError(f"{name} of {owners} is not in the image", name=name)

def re_name(name):
    return name.lower().replace("_", "-").replace(".", "-")

sys.meta_path.insert(0, Others())
import gateway
for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
    importlib.import_module(module.name)
import aiobotocore.session, uvloop
"""


def test_the_run_locks_packages_suffice_for_every_module(tree):
    allowed = {DISTRIBUTION, *lock("requirements-run.lock")}
    told = run_in(tree, "python", "-c", ONLY_THESE, ",".join(allowed))
    assert told.returncode == 0, told.stderr


# --- docker compose -------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return yaml.safe_load(text("docker-compose.yml"))


def env_example() -> tuple[dict[str, str], dict[str, str]]:
    """The variables of .env.example: the required and the optional ones."""
    lines = re.findall(r"^(#?)([A-Z0-9_]+)=(.*)$", text(".env.example"), re.M)
    must, may = ({n: v for c, n, v in lines if c == mark} for mark in ("", "#"))
    return must, may


def interpolated(value: Any, environ: dict[str, str]) -> Any:
    """As docker compose does it: `${NAME:-default}` and `${NAME:?message}`."""
    if isinstance(value, dict):
        return {
            k: environ.get(k) if v is None else interpolated(v, environ) for k, v in value.items()
        }
    if isinstance(value, list):
        return [interpolated(item, environ) for item in value]

    def of(match: re.Match[str]) -> str:
        name, kind, words = match.groups()
        if kind == ":?":
            assert environ.get(name), f"{name}: {words}"
        return environ.get(name) or words

    return (
        re.sub(r"\$\{([A-Z0-9_]+)(:-|:\?)([^}]*)\}", of, value) if isinstance(value, str) else value
    )


def test_every_variable_of_compose_is_in_the_example():
    must, may = env_example()
    demanded = set(re.findall(r"\$\{([A-Z0-9_]+):\?", text("docker-compose.yml")))
    assert demanded == must.keys()
    handed_on = {k for k, v in compose()["services"]["gateway"]["environment"].items() if v is None}
    assert (variables("docker-compose.yml") | handed_on) - demanded == may.keys()


def test_what_is_demanded_says_how_to_make_it():
    for name, words in re.findall(r"\$\{([A-Z0-9_]+):\?([^}]*)\}", text("docker-compose.yml")):
        assert "set it in .env" in words, name
        assert "openssl rand -hex" in words or name == "S3_ACCESS_KEY", name


def test_there_is_no_password_but_those_of_env():
    must, may = env_example()
    assert set(must.values()) == {""}
    assert not [n for n, v in may.items() if v and re.search("KEY|SECRET|PASSWORD|TOKEN", n)]
    for service in compose()["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("KEY|SECRET|PASSWORD|TOKEN|AUTH", name) and value is not None:
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]*\}", value), name
        for credentials in re.findall(r"://([^/]*)@", yaml.safe_dump(service, width=10_000)):
            assert re.search(r":\$\{[A-Z0-9_]+:\?[^}]*\}$", credentials), credentials
    command = compose()["services"]["redis"]["command"]
    assert command[command.index("--requirepass") + 1].startswith("${REDIS_PASSWORD:?")
    ignored = text(".gitignore").split("\n")
    assert ".env" in ignored
    assert "secret.yaml" in ignored


def test_only_the_gateways_port_is_published_and_on_loopback():
    services = compose()["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["gateway"]
    assert interpolated(services["gateway"]["ports"], {}) == ["127.0.0.1:3000:3000"]
    assert compose()["networks"]["inside"]["internal"] is True
    for name, service in services.items():
        assert name == "gateway" or service["networks"] == ["inside"]


def test_no_container_of_compose_can_be_changed_or_become_root():
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
        assert service["restart"] in ("unless-stopped", "on-failure"), name


def test_services_wait_for_each_others_health():
    services = compose()["services"]
    health = {name for name, service in services.items() if "healthcheck" in service}
    health |= {name for name, service in services.items() if "build" in service}  # the image's own
    ended = set()
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_completed_successfully":
                ended.add(other)
            else:
                assert how["condition"] == "service_healthy"
                assert other in health, f"{name} waits for {other}"
    assert ended | health == services.keys()
    assert services["gateway"]["depends_on"].keys() == {"postgres", "redis", "bucket"}
    for name in ended:
        assert services[name]["restart"] == "on-failure", name


def test_compose_keeps_what_must_be_kept():
    volumes = {
        mount.split(":")[0]
        for service in compose()["services"].values()
        for mount in service.get("volumes", [])
        if not mount.startswith("./")
    }
    assert volumes == compose()["volumes"].keys()
    assert "gateway-data:/app/data" in compose()["services"]["gateway"]["volumes"]


def test_compose_leaves_answers_more_time_than_draining_takes():
    service = compose()["services"]["gateway"]
    drain = configfile.parse(text("config.yaml"), {}).server.drain_timeout
    assert seconds(service["stop_grace_period"]) > drain


def test_compose_sets_every_variable_of_config_yaml():
    service = compose()["services"]["gateway"]
    not_for_compose = {"ANONYMOUS", "STORAGE_URL"}
    assert variables("config.yaml") - service["environment"].keys() <= not_for_compose
    values = {name: A_SECRET for name in env_example()[0]}
    environ = interpolated(service["environment"], values)
    config = configfile.parse(text("config.yaml"), {k: v for k, v in environ.items() if v})
    assert config.uses_postgresql
    assert not config.anonymous
    assert config.redis.url.reveal() == f"redis://:{A_SECRET}@redis:6379/0"
    assert config.auth.jwt_secret.reveal() == config.auth.admin_password.reveal() == A_SECRET
    assert config.storage.bucket == ("gateway", "")
    assert config.storage.s3.endpoint == "http://minio:9000"
    assert f"{config.server.port}" == service["ports"][0].rpartition(":")[2]


def test_compose_stores_match_the_gateways_credentials():
    services = interpolated(compose()["services"], {n: f"{n}-x" for n in env_example()[0]})
    of = {name: service.get("environment", {}) for name, service in services.items()}
    pg = of["postgres"]
    url = f"postgresql://{pg['POSTGRES_USER']}:{pg['POSTGRES_PASSWORD']}@postgres:5432/{pg['POSTGRES_DB']}"
    assert of["gateway"]["DATABASE_URL"] == url
    key, secret = of["gateway"]["S3_ACCESS_KEY"], of["gateway"]["S3_SECRET_KEY"]
    assert (of["minio"]["MINIO_ROOT_USER"], of["minio"]["MINIO_ROOT_PASSWORD"]) == (key, secret)
    assert of["bucket"]["MC_HOST_store"] == f"http://{key}:{secret}@minio:9000"
    assert services["bucket"]["command"][-1] == f"store/{of['gateway']['S3_BUCKET']}"
    assert of["redis"]["REDISCLI_AUTH"] in services["redis"]["command"]


# --- Kubernetes -----------------------------------------------------------------------------------


def manifests() -> list[Path]:
    """Every file with Kubernetes objects in it, also outside the overlays."""
    others = ("kustomization.yaml", "config.yaml", "patch.yaml")
    return sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name not in others)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def kustomization(folder: Path) -> dict[str, Any]:
    return documents(folder / "kustomization.yaml")[0]


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects that kustomize makes from a folder, without labels and tags."""
    out, about = [], kustomization(folder)
    for name in about.get("resources", []):
        path = folder / name
        out += built(path) if path.is_dir() else documents(path)
    for made in about.get("configMapGenerator", []):
        data = {name: (folder / name).read_text("utf-8") for name in made["files"]}
        about = {"name": made["name"]}
        out.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": data})
    for name in kustomization(folder).get("components", []):
        (patch,) = kustomization(folder / name)["patches"]
        (change,) = documents(folder / name / patch["path"])
        wanted = {"spec": change["spec"]}
        out = [merged(it, wanted) if it["kind"] == patch["target"]["kind"] else it for it in out]
        out += built(folder / name)
    return out


def merged(old: Any, new: Any) -> Any:
    """A strategic merge: mappings by key, lists of named things by name."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{k: merged(old[k], v) if k in old else v for k, v in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        named = {it["name"]: it for it in new}
        kept = [merged(it, named.pop(it["name"])) if it["name"] in named else it for it in old]
        return [*named.values(), *kept]
    return new


def of_kind(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [it for it in built(KUBERNETES / "overlays" / overlay) if it["kind"] == kind]


def pods(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, template) of everything that makes pods."""
    makers = of_kind(overlay, "Deployment") + of_kind(overlay, "Job")
    return [(maker["metadata"]["name"], maker["spec"]["template"]) for maker in makers]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def gateways(overlay: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod, container) of each serving gateway."""
    found = [
        (pod, c) for _, pod in pods(overlay) for c in containers(pod) if c["name"] == "ai-gateway"
    ]
    assert len(found) == 1
    return found


def example_secrets() -> dict[str, dict[str, str]]:
    found = documents(KUBERNETES / "secret.example.yaml")
    return {secret["metadata"]["name"]: secret["stringData"] for secret in found}


def environment(container: dict[str, Any]) -> dict[str, str]:
    """A container's environment when the example Secrets are filled in."""
    out: dict[str, str] = {}
    for source in container.get("envFrom", []):
        out |= example_secrets()[source["secretRef"]["name"]]
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        out[entry["name"]] = (
            example_secrets()[reference["name"]][reference["key"]] if reference else entry["value"]
        )
    if "JWT_SECRET" in out:
        out["JWT_SECRET"] = A_SECRET
    return {name: re.sub("<[a-z]+>", "filled", value) for name, value in out.items()}


def config_of(overlay: str, container: dict[str, Any]):
    (made,) = of_kind(overlay, "ConfigMap")
    return configfile.parse(made["data"]["config.yaml"], environment(container))


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", manifests(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_manifest_is_what_kubernetes_knows(path, version):
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_versions_named_are_those_that_are_tested():
    said = re.search(r"Kubernetes ([0-9.]+) or newer", text("config/kubernetes/README.md"))[1]
    assert said == VERSIONS[0]
    assert f"Kubernetes {said} or newer" in text(
        "config/kubernetes/overlays/deployment/deployment.yaml"
    )


@pytest.mark.parametrize("folder", ["base", "overlays/sidecar", "overlays/deployment"])
def test_a_kustomization_names_exactly_its_folders_files(folder):
    about = kustomization(KUBERNETES / folder)
    named = {name for name in about["resources"] if name.endswith(".yaml")}
    named |= {name for made in about.get("configMapGenerator", []) for name in made["files"]}
    beside = {path.name for path in (KUBERNETES / folder).iterdir()} - {"kustomization.yaml"}
    assert named == beside
    for name in about["resources"]:
        assert (KUBERNETES / folder / name).exists(), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_same_valid_overlay(overlay):
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed; the files themselves are tested above")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert told.returncode == 0, told.stderr
    made = {(it["kind"], it["metadata"]["name"]): it for it in yaml.safe_load_all(told.stdout)}
    by_hand = built(KUBERNETES / "overlays" / overlay)
    assert made.keys() == {(it["kind"], it["metadata"]["name"]) for it in by_hand}
    for version in VERSIONS:
        for document in made.values():
            kubernetes_validate.validate(document, version, strict=True)
    for it in by_hand:
        if "spec" in it:
            assert made[it["kind"], it["metadata"]["name"]]["spec"] == it["spec"]


def test_the_component_goes_into_any_deployment(tmp_path):
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed; the merge itself is tested by hand above")
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(
        "resources: [deployment.yaml]\ncomponents: [../kubernetes/components/sidecar]\n"
        'images: [{name: "", newName: my.registry/gw, newTag: v1}]\n'
    )
    (mine / "deployment.yaml").write_text(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: shop}, spec: {selector: {matchLabels:"
        " {a: b}}, template: {metadata: {labels: {a: b}}, spec: {initContainers: [{name: first, image:"
        " one}], containers: [{name: shop, image: shop}], volumes: [{name: data, emptyDir: {}}]}}}}"
    )
    command = [kubectl, "kustomize", str(mine)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert told.returncode == 0, told.stderr
    made = {it["kind"]: it for it in yaml.safe_load_all(told.stdout)}
    pod = made["Deployment"]["spec"]["template"]
    assert made["Deployment"]["metadata"]["name"] == "shop"
    images = {it["name"]: it["image"] for it in containers(pod)}
    assert images == {"first": "one", "ai-gateway": "my.registry/gw:v1", "shop": "shop"}
    assert {"name": "data", "emptyDir": {}} in pod["spec"]["volumes"]
    assert "config.yaml" in made["ConfigMap"]["data"]
    for version in VERSIONS:
        kubernetes_validate.validate(made["Deployment"], version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_your_image_apply_refuses_the_pods(overlay):
    """An empty image is the only one that the API server refuses; it accepts any other text and
    the pods hang."""
    ours = [it for _, pod in pods(overlay) for it in containers(pod) if it["name"] == "ai-gateway"]
    assert ours
    assert {it["image"] for it in ours} == {""}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_readme_sets_the_image(overlay, tmp_path):
    shutil.copytree(KUBERNETES, tmp_path / "config/kubernetes")
    readme = (KUBERNETES / "README.md").read_text("utf-8")
    (line,) = [line for line in readme.splitlines() if line.startswith("sed -i")]
    run_in = {"cwd": tmp_path, "env": {**os.environ, "REGISTRY": "registry.example.com/team"}}
    subprocess.run(["bash", "-c", line], check=True, timeout=50, **run_in)
    folder = tmp_path / "config/kubernetes"
    set_in = [folder / "components/sidecar", folder / "overlays/deployment"]
    image = f"registry.example.com/team/ai-gateway:{gateway.__version__}"
    for it in map(kustomization, set_in):
        (entry,) = it["images"]
        assert (entry["name"], f"{entry['newName']}:{entry['newTag']}") == ("", image)
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize", str(folder / "overlays" / overlay)]
        made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
        assert f"image: {image}\n" in made.stdout
        assert 'image: ""' not in made.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_start_without_the_secret_of_the_bots(overlay):
    for _, pod in pods(overlay):
        for container in containers(pod):
            for source in container.get("envFrom", []):
                is_optional = source["secretRef"].get("optional", False)
                assert is_optional == (source["secretRef"]["name"] == "ai-gateway-agents")


def test_compose_bounds_each_container_and_hands_on_the_index():
    for name, service in compose()["services"].items():
        assert service["mem_limit"], name
        assert service["pids_limit"] <= 1000, name
    gateway = interpolated(
        compose()["services"]["gateway"]["build"], {"PIP_INDEX_URL": "https://x"}
    )
    assert gateway["args"] == {"PIP_INDEX_URL": "https://x"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_shut_in(overlay):
    user = int(only(stages()[-1], "USER").partition(":")[0])
    for _, pod in pods(overlay):
        for container in containers(pod):
            own, whole = container["securityContext"], pod["spec"]["securityContext"]
            rules = {**whole, **own}
            assert rules["runAsNonRoot"] is True
            assert rules["runAsUser"] == rules["runAsGroup"] == user
            assert rules["seccompProfile"] == {"type": "RuntimeDefault"}
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in own
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_has_a_part_of_the_node_or_a_token_of_the_cluster(overlay):
    (account,) = of_kind(overlay, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for _, pod in pods(overlay):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= {"configMap", "emptyDir"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_config_passes_the_gateways_own_check(overlay):
    for _, container in gateways(overlay):
        assert config_of(overlay, container).server.drain_timeout == 120
    for name, pod in pods(overlay):
        if name.endswith("migrate"):
            assert config_of(overlay, pod["spec"]["containers"][0]).uses_postgresql


def test_the_config_passes_run_py_check_in_the_images_folder(tree):
    file = KUBERNETES / "base/config.yaml"
    for overlay in OVERLAYS:
        (_, container) = gateways(overlay)[0]
        told = run_in(tree, *entrypoint(), "check", "--config", str(file), **environment(container))
        assert (told.returncode, told.stderr) == (0, "")
        assert "nobody can call" not in told.stdout
    told = run_in(tree, *entrypoint(), "check", "--config", str(file))
    assert "DATABASE_URL is not set" in told.stderr  # rather than a database of its own


def test_every_variable_of_the_config_comes_from_somewhere():
    known = {name for secret in example_secrets().values() for name in secret}
    for overlay in OVERLAYS:
        known |= {e["name"] for _, c in gateways(overlay) for e in c["env"]}
    assert variables("config/kubernetes/base/config.yaml") <= known
    agents = configfile.parse(text("config.yaml"), {}).agents
    assert config_of("sidecar", gateways("sidecar")[0][1]).agents.keys() == agents.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_that_is_referred_to_is_in_the_example(overlay):
    secrets = example_secrets()
    for _, pod in pods(overlay):
        for container in containers(pod):
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] in secrets
            for entry in container.get("env", []):
                if "valueFrom" in entry:
                    reference = entry["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in secrets[reference["name"]]
                    assert "optional" not in reference
                else:
                    assert not re.search("SECRET|PASSWORD|TOKEN", entry["name"])


def test_the_example_of_secrets_holds_none_and_is_not_applied():
    for secret in example_secrets().values():
        for name, value in secret.items():
            assert value == "" or "<" in value, name
            assert "PASSWORD" not in name or value == "", f"{name}: it would be taken as it is"
    for overlay in OVERLAYS:
        assert of_kind(overlay, "Secret") == []
    unfilled = {
        **environment(gateways("deployment")[0][1]),
        "JWT_SECRET": example_secrets()["ai-gateway-stores"]["JWT_SECRET"],
    }
    with pytest.raises(configfile.ConfigError, match="JWT_SECRET"):
        configfile.parse(text("config/kubernetes/base/config.yaml"), unfilled)
    with pytest.raises(configfile.ConfigError) as caught:
        configfile.parse(
            text("config/kubernetes/base/config.yaml"),
            {**example_secrets()["ai-gateway-stores"], "JWT_SECRET": A_SECRET},
        )
    assert [line.partition(" in it")[0] for line in caught.value.problems] == [
        "database: has the placeholder <password>",
        "redis: has the placeholder <password>",
        "storage.s3.bucket: has the placeholder <bucket>",
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_config_reaches_the_running_gateway(overlay):
    (made,) = kustomization(KUBERNETES / "base")["configMapGenerator"]
    assert made["options"] == {"disableNameSuffixHash": True}
    for _, pod in pods(overlay):
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        for container in containers(pod):
            if container["image"] != "ai-gateway":
                continue
            file = PurePosixPath(container["args"][container["args"].index("--config") + 1])
            mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
            mount = mounts[str(file.parent)]  # the folder: a subPath never changes
            assert "subPath" not in mount
            assert volumes[mount["name"]]["configMap"] == {"name": made["name"]}
            assert file.name in made["files"]
            assert set(container["args"]) - {"--config", str(file)} <= {"migrate"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_gateway_writes_has_a_place(overlay):
    for pod, container in gateways(overlay):
        config = config_of(overlay, container)
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        writable = {
            m["mountPath"]: volumes[m["name"]]["emptyDir"]
            for m in container["volumeMounts"]
            if not m.get("readOnly")
        }
        assert writable.keys() == {only(stages()[-1], "VOLUME"), "/tmp"}
        size = int(writable["/app/data"]["sizeLimit"].removesuffix("Mi")) << 20
        assert config.record.max_spool < size
        assert (PurePosixPath("/app") / config.record.spool).is_relative_to("/app/data")
        temporary = int(writable["/tmp"]["sizeLimit"].removesuffix("Mi")) << 20
        assert config.server.max_forms < temporary
        resources = container["resources"]
        assert resources["requests"]["ephemeral-storage"]
        assert resources["limits"]["ephemeral-storage"] == "1Gi"
        assert size + temporary <= 1 << 30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_answers_have_more_time_than_draining_takes(overlay):
    for pod, container in gateways(overlay):
        before = (
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        drain = config_of(overlay, container).server.drain_timeout
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before + drain + 10
    maker = of_kind(overlay, "Deployment")[0]["spec"]
    assert maker["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_stopping_replica_waits_for_the_endpoints_to_update():
    (_, container) = gateways("deployment")[0]
    assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_use_the_ops_port_and_tolerate_busy_moments(overlay):
    wanted = {"startupProbe": "/readyz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for pod, container in gateways(overlay):
        server = config_of(overlay, container).server
        for probe, path in wanted.items():
            assert container[probe]["httpGet"] == {"path": path, "port": "ops"}
            assert container[probe]["timeoutSeconds"] >= 5
        assert ports(container)["ops"] == server.ops_port
        assert server.ops_host == "0.0.0.0"  # the kubelet connects from outside, also to a sidecar
        notes = pod["metadata"]["annotations"]
        assert notes["prometheus.io/port"] == str(server.ops_port)


def test_the_sidecar_serves_its_pod_alone():
    pod, container = gateways("sidecar")[0]
    config = config_of("sidecar", container)
    assert config.anonymous
    assert config.binds_loopback
    assert not config.database
    assert ports(container).keys() == {"ops"}
    assert container in pod["spec"]["initContainers"]
    assert container["restartPolicy"] == "Always"
    (app,) = pod["spec"]["containers"]
    assert (
        environment(app)["OPENAI_BASE_URL"]
        == f"http://{config.server.host}:{config.server.port}/v1"
    )
    assert config.rate_limits.chat.capacity >= 1000  # the application is one caller


def test_the_replicas_demand_keys_and_share_what_must_be_shared():
    _, container = gateways("deployment")[0]
    config = config_of("deployment", container)
    assert not config.anonymous
    assert config.uses_postgresql
    assert config.redis.url
    assert config.storage.folder == ""
    assert ports(container) == {"http": config.server.port, "ops": config.server.ops_port}
    needed = {e["name"] for e in container["env"] if "valueFrom" in e}
    assert needed == {"DATABASE_URL", "REDIS_URL", "JWT_SECRET", "S3_BUCKET"}


def test_at_least_three_spread_replicas_and_a_disruption_budget():
    (maker,) = of_kind("deployment", "Deployment")
    (scaler,) = of_kind("deployment", "HorizontalPodAutoscaler")
    (budget,) = of_kind("deployment", "PodDisruptionBudget")
    assert "replicas" not in maker["spec"]  # every apply would undo the scaler's decision
    assert scaler["spec"]["minReplicas"] == 3
    assert budget["spec"]["maxUnavailable"] == 1
    spread = maker["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {s["topologyKey"] for s in spread} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    for constraint in spread:
        assert (
            constraint["labelSelector"]["matchLabels"] == maker["spec"]["selector"]["matchLabels"]
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_gateways_pods_and_no_others(overlay):
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay)}
    for maker in of_kind(overlay, "Deployment"):
        selector = maker["spec"]["selector"]["matchLabels"]
        found = [name for name, its in labels.items() if selector.items() <= its.items()]
        assert found == [maker["metadata"]["name"]]
    for kind in ("Service", "PodDisruptionBudget"):
        for it in of_kind(overlay, kind):
            selector = it["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            found = [name for name, its in labels.items() if selector.items() <= its.items()]
            assert found == ["ai-gateway"], kind


def test_the_service_leads_to_the_gateways_port_and_not_to_ops():
    (service,) = of_kind("deployment", "Service")
    (port,) = service["spec"]["ports"]
    _, container = gateways("deployment")[0]
    assert port["targetPort"] == "http"
    assert ports(container)["http"] == port["port"] == int(environment(container)["PORT"])
    assert port["port"] == int(only(stages()[-1], "EXPOSE"))


def test_the_network_policy_opens_ops_for_monitoring_only():
    (policy,) = of_kind("deployment", "NetworkPolicy")
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    for _, pod in pods("deployment"):  # the migration's pod too
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    rules = {rule["ports"][0]["port"]: rule for rule in spec["ingress"]}
    assert rules.keys() == {"http", "ops"} == ports(gateways("deployment")[0][1]).keys()
    assert rules["ops"]["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    out = {port["port"]: rule.get("to") for rule in spec["egress"] for port in rule["ports"]}
    urls = example_secrets()["ai-gateway-stores"]
    stores = {int(re.search(r":(\d+)/", urls[name])[1]) for name in ("DATABASE_URL", "REDIS_URL")}
    assert out.keys() == {53, 443, 9000, *stores}
    (everywhere,) = [p["ipBlock"] for p in out[443] if p["ipBlock"]["cidr"] == "0.0.0.0/0"]
    assert "169.254.0.0/16" in everywhere["except"]
    for port in (9000, *stores):
        assert all("0.0.0.0/0" not in str(peer) and "::/0" not in str(peer) for peer in out[port])


def test_the_migration_is_a_job_that_cleans_up_after_itself():
    (job,) = of_kind("deployment", "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "migrate"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert job["spec"]["activeDeadlineSeconds"] > 0


def test_scalers_and_the_ingress_lead_to_what_there_is():
    (by_cpu,) = of_kind("deployment", "HorizontalPodAutoscaler")
    (by_streams,) = documents(KUBERNETES / "examples/autoscale-by-streams.yaml")
    (maker,) = of_kind("deployment", "Deployment")
    for scaler in (by_cpu, by_streams):
        to = scaler["spec"]["scaleTargetRef"]
        assert (to["kind"], to["name"]) == ("Deployment", maker["metadata"]["name"])
    assert by_streams["metadata"]["name"] == by_cpu["metadata"]["name"]
    assert by_streams["spec"]["metrics"][0]["pods"]["metric"]["name"] == "gateway_open_streams"
    (ingress,) = documents(KUBERNETES / "examples/ingress.yaml")
    (service,) = of_kind("deployment", "Service")
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] in [
        p["name"] for p in service["spec"]["ports"]
    ]


def test_the_ingress_neither_buffers_nor_cuts_streams():
    (ingress,) = documents(KUBERNETES / "examples/ingress.yaml")
    notes = {k.rpartition("/")[2]: v for k, v in ingress["metadata"]["annotations"].items()}
    assert notes["proxy-buffering"] == notes["proxy-request-buffering"] == "off"
    config = config_of("deployment", gateways("deployment")[0][1])
    for agent in config.agents.values():
        assert int(notes["proxy-read-timeout"]) > agent.timeouts.total
    size = int(notes["proxy-body-size"].removesuffix("m")) << 20
    assert size > max(config.storage.max_size, config.server.max_body)


# --- the texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SECURITY.md", "config/kubernetes/README.md"])
def test_links_and_files_that_the_texts_name_are_there(name):
    for link in re.findall(r"\]\(([^)#]+)\)", text(name)):
        assert (ROOT / name).parent.joinpath(link).exists(), link
    for path in re.findall(r"config/kubernetes/[a-z./]+[a-z]", text(name)):
        assert (ROOT / path).exists(), path


def test_vulnerabilities_are_reported_in_private():
    assert "Report a vulnerability" in text("SECURITY.md")
    assert not re.search(r"[\w.]+@[\w.]+\w", text("SECURITY.md"))
