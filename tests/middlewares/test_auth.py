"""Every route requires the right access: checked from the list of routes, so that none is
missed."""

import re

import pytest

from gateway.routes import all_routes

PUBLIC = {
    "/", "/health", "/livez", "/readyz", "/metrics", "/api/v1/agents", "/api/v1/agents/{name}",
    "/api/v1/agents/{name}/health", "/api/v1/login", "/api/v1/auth/login", "/api/v1/auth/register",
    # the latter only reports that the path does not exist
    "/files/{name:uploads/.+}", "/v1/{path:.+}",
}  # fmt: skip
FOR_ADMINS = {
    "/api/v1/auth/users", "/api/v1/auth/users/{id}", "/api/v1/auth/users/{id}/usage",
    "/api/v1/api-keys/admin/all", "/api/v1/api-keys/admin/cleanup",
    "/api/v1/usage", "/api/v1/calls", "/api/v1/calls/{id}",
}  # fmt: skip
ROUTES = list(all_routes())


def test_the_public_routes_are_these_and_no_others():
    assert {route.path for route in ROUTES if route.access is None} == PUBLIC


def test_what_costs_an_upstream_is_limited():
    unlimited = [r.path for r in ROUTES if r.access == "chat" and r.limit is None]
    assert {path for path in unlimited if "models" not in path} == set()


@pytest.fixture
async def credentials(with_accounts, tmp_path):
    """A gateway and the credentials of non-admins, by name."""
    gw = await with_accounts(f"sqlite:///{tmp_path}/g.db")
    admin = await gw.login()
    body = {"username": "li", "password": "good enough password", "role": "premium"}
    await gw.api("POST", "/auth/users", admin, body)
    li = await gw.login("li", "good enough password")
    _, key = await gw.key(li, permissions=["chat", "upload"])
    page = (await gw.api("POST", "/tokens", key, {"user": "visitor"}))[1]["data"]["token"]
    return gw, {"nothing": "", "a user": li, "a key": key, "a page": page}


async def test_no_route_is_open_to_somebody_it_is_not_for(credentials):
    gw, held = credentials
    for route in ROUTES:
        if route.access is None:
            continue
        path = route.path.replace("{path:.+}", "embeddings").replace("{id:.+}", "dify")
        path = re.sub(r"\{\w+\}", "some-id", path)
        for who, credential in held.items():
            headers = {"Authorization": f"Bearer {credential}"} if credential else {}
            data = None if route.method == "GET" else "{}"
            answer = await gw.client.request(
                route.method, gw.url + path, headers=headers, data=data
            )
            is_account = route.path.startswith(("/api/v1/auth", "/api/v1/api-keys"))
            if who == "nothing":
                assert answer.status == 401, (route, who)
            elif route.path in FOR_ADMINS or (is_account and who != "a user"):
                assert answer.status == 403, (route, who)
            else:
                assert answer.status not in (401, 500), (route, who)


@pytest.mark.parametrize(
    "key",
    ["sk-gw-' OR 1=1 --", "sk-gw-aaaaaaaaaaa'-" + "a" * 48, "sk-gw-" + "a" * 12 + "-" + "a" * 47 + "'",
     "x'; DROP TABLE api_keys; --", "sk-gw-%00aaaaaaaaa-" + "a" * 48, "a" * 5000],
)  # fmt: skip
async def test_keys_that_are_sql_or_nonsense_are_only_wrong_keys(credentials, key):
    gw, held = credentials
    assert (await gw.ask(key))[0] == 401
    assert (await gw.ask(held["a key"]))[0] == 200


async def test_a_key_counts_whole_and_not_by_its_beginning(credentials):
    gw, held = credentials
    good = held["a key"]
    assert (await gw.ask(good))[0] == 200
    for cut in range(20, len(good)):
        assert (await gw.ask(good[:cut]))[0] == 401
        assert (await gw.ask(good[:cut] + "A" * (len(good) - cut)))[0] == 401 or good[cut:] == "A"
