"""`${…}` in values, and options that variables set by convention."""

import pytest
from problems import AGENT, problems

from gateway.config.load import parse


def test_variables_and_defaults():
    text = 'agents: {a: {platform: dify, headers: {X: "${A}-${B:-b}-$${C}"}}, b: {platform: dify, headers: {X: os.environ/A}}}'
    agents = parse(text, {"A": "1", "B": ""}).agents
    assert agents["a"].headers["X"].reveal() == "1-b-${C}"
    assert agents["b"].headers["X"].reveal() == "1"
    assert parse(AGENT + 'server: {port: "${P:-3001}"}', {}).server.port == 3001
    assert "no variable" in problems(AGENT + 'server: {host: "${not a name}"}')[0]


def test_host_and_port_of_the_environment_are_defaults():
    environ = {"HOST": "127.0.0.5", "PORT": "3009"}
    assert parse(AGENT, environ).server.port == 3009
    assert parse(AGENT, environ).server.host == "127.0.0.5"
    assert parse(AGENT + "server: {port: 4000}", environ).server.port == 4000
    assert parse(AGENT, environ, port=5000).server.port == 5000


URL = "agents: {a: {platform: dify, api_key: app-1, base_url: '%s'}}"


@pytest.mark.parametrize(
    ("text", "environ", "path"),
    [
        (URL % "${DIFY_BASE_URL:-demo:}", {"DIFY_BASE_URL": "dify"}, "agents.a.base_url"),
        (
            URL % "${SCHEME}://${HOST_NAME}",
            {"SCHEME": "ftp", "HOST_NAME": "x"},
            "agents.a.base_url",
        ),
        (AGENT, {"PORT": "many"}, "server.port"),
        (AGENT, {"S3_BUCKET": "b", "S3_ADDRESSING": "odd"}, "storage.s3.addressing"),
        (AGENT, {"HTTPS_PROXY": "gopher://x"}, "outgoing.https_proxy"),
    ],
)
def test_a_bad_value_of_a_variable_names_the_variable(text, environ, path):
    names = " and ".join(name for name in environ if name != "S3_BUCKET")
    (line,) = problems(text, **environ)
    assert line.startswith(f"{path}: ")
    assert line.endswith(f" (from {names})")


def test_a_bad_value_that_no_variable_gave_names_none():
    environ = {"DIFY_BASE_URL": "", "PORT": "3001"}
    assert "(from " not in problems(URL % "${DIFY_BASE_URL:-dify}", **environ)[0]
    assert "(from " not in problems(AGENT + "server: {port: many}", **environ)[0]


S3_ENVIRON = {
    "S3_ENDPOINT": "http://minio:9000", "S3_ACCESS_KEY": "access", "S3_SECRET_KEY": "hush-hush",
    "S3_BUCKET": "files", "S3_REGION": "cn-north-1", "S3_KEY_PREFIX": "gw/", "S3_ACL": "private",
    "S3_PUBLIC_BASE_URL": "https://cdn.example.com/files/",
}  # fmt: skip


def test_files_lie_in_a_folder_unless_a_bucket_is_named():
    assert parse(AGENT, {}).storage.folder == "data/uploads"
    assert parse(AGENT, {"STORAGE_URL": "file:/srv/up"}).storage.folder == "/srv/up"
    assert parse(AGENT, {"STORAGE_URL": "file:///srv/up"}).storage.folder == "/srv/up"
    storage = parse(AGENT, {"STORAGE_URL": "s3://b/some/prefix"}).storage
    assert (storage.folder, storage.bucket) == ("", ("b", "some/prefix"))
    assert parse(AGENT, {**S3_ENVIRON, "STORAGE_URL": "file:up"}).storage.folder == "up"


@pytest.mark.parametrize("text", [AGENT, AGENT + 'storage: {url: ""}\n'])
def test_the_s3_variables_are_honoured(text):
    storage = parse(text, S3_ENVIRON).storage
    assert (storage.folder, storage.bucket) == ("", ("files", "gw/"))
    assert storage.public_base_url == "https://cdn.example.com/files"
    s3 = storage.s3
    assert (s3.endpoint, s3.region, s3.acl) == ("http://minio:9000", "cn-north-1", "private")
    assert (s3.access_key.reveal(), s3.secret_key.reveal()) == ("access", "hush-hush")
    assert "hush" not in repr(storage)


def test_what_the_file_says_of_s3_wins_over_the_variables():
    text = AGENT + "storage: {url: 's3://mine', public_base_url: 'https://a.b', s3: {region: eu}}"
    storage = parse(text, S3_ENVIRON).storage
    assert (storage.bucket[0], storage.s3.region) == ("mine", "eu")
    assert storage.public_base_url == "https://a.b"


def test_the_public_address_of_a_bucket_is_not_that_of_a_folder():
    storage = parse(AGENT, {"S3_PUBLIC_BASE_URL": "https://cdn.example.com"}).storage
    assert storage.public_base_url is None
