"""Bodies and queries of administration with names that nothing is known by are refused."""

import pytest

NEW_USER = {"username": "li", "password": "good enough password"}


@pytest.fixture
async def gw(with_accounts, tmp_path):
    return await with_accounts(f"sqlite:///{tmp_path}/g", auth={"registration": True})


@pytest.mark.parametrize(
    ("name", "words"),
    [("models", "known: name, description"), ("max_budget", "known: "), ("duration", "known: "),
     ("ttl", "known: "), ("max_call", "did you mean 'max_calls'?"), ("agent", "did you mean 'agents'?"),
     ("Permissions", "did you mean 'permissions'?"), ("rate_limit", "did you mean 'rate_limits'?"),
     ("id", "known: "), ("is_active", "known: ")],
)  # fmt: skip
async def test_a_key_is_not_made_with_an_unknown_restriction(gw, name, words):
    admin = await gw.login()
    status, answer = await gw.api("POST", "/api-keys", admin, {"name": "k", name: 1})
    assert status == 400
    assert answer["detail"]["param"] == name
    assert f"'{name}' is not known here" in answer["msg"]
    assert words in answer["msg"]
    assert (await gw.api("GET", "/api-keys", admin))[1]["data"]["total"] == 0


@pytest.mark.parametrize(
    ("method", "path", "given", "name"),
    [("POST", "/auth/users", NEW_USER, "quota"), ("POST", "/auth/users", NEW_USER, "max_calls"),
     ("POST", "/auth/register", NEW_USER, "max_calls"), ("PUT", "/auth/me", {}, "emial"),
     ("PUT", "/auth/me", {}, "password"), ("PUT", "/auth/users/{me}", {}, "max_budget"),
     ("POST", "/auth/change-password", {"old_password": "x", "new_password": "y"}, "logout"),
     ("PUT", "/api-keys/{key}", {}, "models"), ("PUT", "/api-keys/{key}", {}, "max_cals")],
)  # fmt: skip
async def test_no_setting_is_ignored(gw, method, path, given, name):
    admin = await gw.login()
    me = (await gw.api("GET", "/auth/me", admin))[1]["data"]["id"]
    key, _ = await gw.key(admin)
    path = path.format(me=me, key=key)
    status, answer = await gw.api(method, path, admin, {**given, name: "x"})
    assert status == 400
    assert answer["detail"]["param"] == name


@pytest.mark.parametrize("name", ["ttl", "expires", "agent", "models", "max_tokens"])
async def test_a_token_is_not_made_with_an_unknown_restriction(gw, name):
    _, key = await gw.key(await gw.login())
    status, answer = await gw.api("POST", "/tokens", key, {"user": "u", name: 1})
    assert status == 400
    assert answer["detail"]["param"] == name


async def test_an_unknown_limit_of_a_key_is_named(gw):
    body = {"name": "k", "rate_limits": {"chats": "1/min"}}
    status, answer = await gw.api("POST", "/api-keys", await gw.login(), body)
    assert status == 400
    assert "'chats' is not known here; did you mean 'chat'?" in answer["msg"]


async def test_what_was_read_can_be_sent_back_changed(gw):
    admin = await gw.login()
    id_, _ = await gw.key(admin)
    key = (await gw.api("GET", f"/api-keys/{id_}", admin))[1]["data"]
    changed = {**key, "description": "changed"}
    assert (await gw.api("PUT", f"/api-keys/{id_}", admin, changed))[1]["data"] == changed
    me = (await gw.api("GET", "/auth/me", admin))[1]["data"]
    for path in ("/auth/me", f"/auth/users/{me['id']}"):
        status, answer = await gw.api("PUT", path, admin, {**me, "full_name": path})
        assert status == 200
        assert answer["data"]["full_name"] == path


async def test_a_user_is_made_with_the_status_that_is_given(gw):
    admin = await gw.login()
    body = {**NEW_USER, "status": "suspended"}
    answer = (await gw.api("POST", "/auth/users", admin, body))[1]
    assert answer["data"]["status"] == "suspended"
    assert (await gw.api("POST", "/login", body=NEW_USER))[0] == 403


@pytest.mark.parametrize(
    ("path", "name"),
    [("/calls?agnet=a", "agnet"), ("/calls?agent=a&user=b", "user"), ("/calls?agent=a&agent=b", "agent"),
     ("/calls?only_errors=yes", "only_errors"), ("/calls?since=2026-01-01", "since"),
     ("/usage?group=day", "group"), ("/usage?form=2026-01-01", "form"), ("/usage?agent=a", "agent"),
     ("/auth/users?roles=admin", "roles"), ("/api-keys?owner=x", "owner"),
     ("/api-keys/admin/all?user_id=x", "user_id")],
)  # fmt: skip
async def test_a_filter_that_is_not_known_is_refused(gw, path, name):
    status, answer = await gw.api("GET", path, await gw.login())
    assert status == 400
    assert answer["detail"]["param"] == name


async def test_a_clean_up_with_a_misspelt_age_deletes_nothing(gw):
    admin = await gw.login()
    id_, _ = await gw.key(admin)
    await gw.api("POST", f"/api-keys/{id_}/revoke", admin)
    assert (await gw.api("POST", "/api-keys/admin/cleanup?older_than=30", admin))[0] == 400
    assert (await gw.api("GET", f"/api-keys/{id_}", admin))[0] == 200
