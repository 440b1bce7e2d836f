"""Unknown members and parameters of administration are refused."""

import pytest
from conftest import ADMIN_PASSWORD

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


# The text for an invalid value of a known member.


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("/api-keys", {}, "'name' is missing."),
        ("/api-keys", {"name": 5}, "'name' must be a text."),
        ("/api-keys", {"name": ""}, "'name' is too short (at least 1)."),
        ("/api-keys", {"name": "k" * 101}, "'name' is too long (at most 100)."),
        ("/api-keys", {"name": "a\tb"}, "'name' has a form that is not allowed, or characters"),
        ("/api-keys", {"name": "k", "max_calls": 0}, "'max_calls' must be at least 1."),
        ("/api-keys", {"name": "k", "max_calls": "x"}, "'max_calls' must be a whole number."),
        ("/api-keys", {"name": "k", "max_calls": 1.5}, "'max_calls' must be a whole number."),
        ("/api-keys", {"name": "k", "permissions": "chat"}, "'permissions' must be a list."),
        ("/api-keys", {"name": "k", "permissions": []}, "'permissions' has too few entries"),
        ("/api-keys", {"name": "k", "permissions": ["x"]},
         "'permissions.0' must be 'chat', 'upload' or 'admin'."),
        ("/api-keys", {"name": "k", "rate_limits": []}, "'rate_limits' must be an object."),
        ("/api-keys", {"name": "k", "rate_limits": {"chat": "x"}},
         "'rate_limits' cannot be used: 'chat' must be a rate such as 60/min"),
        ("/auth/users", {"username": "a b", "password": "good enough password"},
         "'username' must have 1 to 64 characters, without spaces"),
        ("/auth/users", {}, "'username' is missing. (2 problems in all.)"),
    ],
)  # fmt: skip
async def test_a_bad_member_is_explained_in_plain_text(gw, path, given, words):
    status, answer = await gw.api("POST", path, await gw.login(), given)
    assert status == 400
    assert words in answer["msg"]
    for phrase in ("Input", "should", "required", "Value error", "pydantic"):
        assert phrase not in answer["msg"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stream": "maybe"}, "'stream' must be true or false."),
        ({"files": [{"url": "ftp://x"}]}, "'files.0.url' has a form that is not allowed"),
        ({"files": [5]}, "'files.0' must be a URL, the id of an upload, or an object"),
        ({"files": ["http://x/a.png"] * 51}, "'files' must have at most 50 entries."),
        ({"files": [{"id": "u1"}]}, '{"id": "…", "type": "image"}'),
    ],
)
async def test_a_bad_member_of_a_chat_is_explained_in_plain_text(gw, given, words):
    _, key = await gw.key(await gw.login())
    status, answer = await gw.ask(key, **given)
    assert (status, words in answer["msg"]) == (400, True), answer["msg"]


async def test_a_weak_new_password_is_named_by_its_member(gw):
    body = {"old_password": ADMIN_PASSWORD, "new_password": "short"}
    _, answer = await gw.api("POST", "/auth/change-password", await gw.login(), body)
    assert answer["detail"]["param"] == "new_password"


async def test_an_error_names_who_has_a_permission(gw):
    admin = await gw.login()
    await gw.api("POST", "/auth/users", admin, NEW_USER)
    token = await gw.login(NEW_USER["username"], NEW_USER["password"])
    status, answer = await gw.api("GET", "/calls", token)
    assert status == 403
    assert "which accounts with the role admin have" in answer["msg"]


async def test_a_token_without_a_key_says_how_to_send_one(gw):
    status, answer = await gw.api("POST", "/tokens", await gw.login(), {"user": "u"})
    assert status == 403
    assert "send it as 'Authorization: Bearer <key>'" in answer["msg"]
    assert "POST /api/v1/api-keys" in answer["msg"]
