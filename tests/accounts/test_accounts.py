"""The account workflow through the API, on SQLite and on PostgreSQL."""

import asyncio
import base64
import json
import logging
import time

import jwt
import pytest
from argon2 import PasswordHasher
from conftest import ADMIN_PASSWORD

from gateway.accounts.passwords import Passwords
from gateway.http.context import SERVICES
from gateway.secret import Secret

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def gw(with_accounts, database_url):
    return await with_accounts(database_url, auth={"registration": True})


# Logging in.


async def test_the_login_answer_is_in_data_and_at_top_level(gw):
    body = {"username": "Admin", "password": ADMIN_PASSWORD}
    for path in ("/login", "/auth/login"):
        status, answer = await gw.api("POST", path, body=body)
        assert status == 200
        assert answer["code"] == 0
        data = answer["data"]
        assert data["token_type"] == "bearer"
        assert data["expires_in"] == 1800
        assert {name: answer[name] for name in data} == data
        assert data["user"].keys() == {
            "id", "username", "email", "full_name", "role", "status", "created_at", "updated_at",
            "last_login", "api_calls_count", "max_api_calls",
        }  # fmt: skip
        assert data["user"]["role"] == "admin"
        assert data["user"]["last_login"]
    claims = jwt.decode(answer["access_token"], SECRET, algorithms=["HS256"])
    assert claims.keys() >= {"sub", "role", "iat", "exp", "jti"}
    assert claims["exp"] - claims["iat"] == 1800


async def test_a_valid_login_is_refreshed_and_the_old_token_stays(gw):
    token = await gw.login()
    before = jwt.decode(token, SECRET, algorithms=["HS256"])
    status, answer = await gw.api("POST", "/auth/refresh", token)
    assert status == 200
    fresh = answer["data"]["access_token"]
    claims = jwt.decode(fresh, SECRET, algorithms=["HS256"])
    assert (claims["since"], claims["use"]) == (before["iat"], "login")
    for each in (token, fresh):
        assert (await gw.api("GET", "/auth/me", each))[0] == 200


@pytest.mark.parametrize(
    ("age", "status", "lasts"),
    [(11 * 3600, 200, 1800), (12 * 3600 - 600, 200, 600), (12 * 3600, 401, 0), (13 * 3600, 401, 0)],
)
async def test_a_session_ends_however_often_it_is_refreshed(gw, age, status, lasts):
    now = int(time.time())
    claims = jwt.decode(await gw.login(), SECRET, algorithms=["HS256"])
    old = jwt.encode({**claims, "since": now - age}, SECRET, algorithm="HS256")
    got, answer = await gw.api("POST", "/auth/refresh", old)
    assert got == status
    if status == 200:
        assert lasts - 5 <= answer["data"]["expires_in"] <= lasts
    else:
        assert "log in again" in answer["msg"]


async def test_what_is_no_valid_login_cannot_be_refreshed(gw):
    _, key = await gw.key(await gw.login())
    claims = jwt.decode(await gw.login(), SECRET, algorithms=["HS256"])
    expired = jwt.encode({**claims, "exp": int(time.time()) - 1}, SECRET, algorithm="HS256")
    status, page = await gw.api("POST", "/tokens", key, {"user": "visitor"})
    assert status == 200
    for token, wanted in (("", 401), (expired, 401), (key, 403), (page["data"]["token"], 403)):
        assert (await gw.api("POST", "/auth/refresh", token))[0] == wanted
    token = await gw.login()
    body = {"old_password": ADMIN_PASSWORD, "new_password": "quite another password"}
    assert (await gw.api("POST", "/auth/change-password", token, body))[0] == 200
    status, answer = await gw.api("POST", "/auth/refresh", token)
    assert (status, answer["detail"]["error"]) == (401, "invalid_token")


async def test_a_form_logs_in_too(gw):
    form = {"username": "admin", "password": ADMIN_PASSWORD, "grant_type": "password"}
    answer = await gw.client.post(f"{gw.url}/api/v1/login", data=form)
    assert (await answer.json())["access_token"]
    # curl -d sends this type with any body
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = {"username": "admin", "password": ADMIN_PASSWORD}
    answer = await gw.post("/api/v1/login", body, headers=form)
    assert (await answer.json())["access_token"]


async def test_a_wrong_name_and_a_wrong_password_look_the_same(gw):
    answers = []
    for name in ("admin", "nobody"):
        body = {"username": name, "password": "wrong wrong"}
        answers.append(await gw.api("POST", "/login", body=body))
    assert answers[0] == answers[1]
    status, answer = answers[0]
    assert status == 401
    assert answer["detail"]["error"] == "invalid_credentials"


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "admin"}, {"username": "admin", "password": ""}, {"username": 1, "password": []},
     {"username": "a" * 300, "password": "x"}, {"username": "admin", "password": "x" * 300}],
)  # fmt: skip
async def test_an_incomplete_login_is_400_and_repeats_no_password(gw, body):
    status, answer = await gw.api("POST", "/login", body=body)
    assert status == 400
    assert "xxx" not in str(answer)


# Accounts.


async def test_registration_makes_a_user_who_may_not_make_keys(gw):
    body = {"username": "小李", "password": "八个字符以上的密码", "email": "li@example.com"}
    status, answer = await gw.api("POST", "/auth/register", body=body)
    assert status == 200
    token = answer["access_token"]
    assert (await gw.api("GET", "/auth/me", token))[1]["data"]["username"] == "小李"
    assert (await gw.api("POST", "/api-keys", token, {"name": "k"}))[0] == 403
    for again in ({**body, "email": "other@example.com"}, {**body, "username": "li2"}):
        assert (await gw.api("POST", "/auth/register", body=again))[0] == 409
    assert await gw.login("LI@example.com", "八个字符以上的密码")


async def test_a_registration_chooses_no_role_and_no_status(gw):
    body = {"username": "li", "password": "good enough password", "role": "admin"}
    status, answer = await gw.api("POST", "/auth/register", body={**body, "status": "inactive"})
    assert (status, answer["user"]["role"], answer["user"]["status"]) == (200, "user", "active")


@pytest.mark.parametrize(
    "wrong",
    [{"username": "a b"}, {"username": "a@b"}, {"username": ""}, {"username": "a/b"},
     {"password": "short"}, {"password": "x" * 300}, {"password": "somebody"}, {"email": "nobody"},
     {"full_name": "a\nb"}, {"username": "a\u202eb"}],
)  # fmt: skip
async def test_accounts_that_cannot_be_are_400(gw, wrong):
    body = {"username": "somebody", "password": "good enough password", **wrong}
    status, answer = await gw.api("POST", "/auth/register", body=body)
    assert status == 400, answer


async def test_registration_is_closed_unless_it_is_opened(with_accounts, database_url):
    gw = await with_accounts(database_url)
    body = {"username": "somebody", "password": "good enough password"}
    status, answer = await gw.api("POST", "/auth/register", body=body)
    assert status == 403
    assert "auth.registration" in answer["msg"]


async def test_one_may_change_ones_name_but_not_ones_role(gw):
    body = {"username": "somebody", "password": "good enough password"}
    token = (await gw.api("POST", "/auth/register", body=body))[1]["access_token"]
    change = {"full_name": "某人", "email": "s@example.com", "role": "admin", "status": "inactive"}
    status, answer = await gw.api("PUT", "/auth/me", token, change)
    assert status == 200
    assert answer["data"]["full_name"] == "某人"
    assert answer["data"]["role"] == "user"
    assert answer["data"]["status"] == "active"
    assert (await gw.api("PUT", "/auth/me", token, {"full_name": "S"}))[1]["data"]["email"]


async def test_a_changed_password_ends_every_login(gw):
    old, other = await gw.login(), await gw.login()
    change = {"old_password": ADMIN_PASSWORD, "new_password": "another password"}
    wrong = {**change, "old_password": "not it at all"}
    assert (await gw.api("POST", "/auth/change-password", old, wrong))[0] == 400
    status, answer = await gw.api("POST", "/auth/change-password", old, change)
    assert status == 200
    for token in (old, other):
        status, refused = await gw.api("GET", "/auth/me", token)
        assert status == 401
        assert "password has changed" in refused["msg"]
        assert (await gw.ask(token))[0] == 401
    assert (await gw.api("GET", "/auth/me", answer["access_token"]))[0] == 200
    assert await gw.login("admin", "another password")


async def make(gw, token, name, **more):
    body = {"username": name, "password": "good enough password", **more}
    status, answer = await gw.api("POST", "/auth/users", token, body)
    assert status == 200, answer
    return answer["data"]["id"], await gw.login(name, "good enough password")


async def test_role_and_status_change_from_the_next_request_on(gw):
    admin = await gw.login()
    id_, token = await make(gw, admin, "li")
    assert (await gw.api("GET", "/auth/users", token))[0] == 403
    assert (await gw.api("PUT", f"/auth/users/{id_}", admin, {"role": "admin"}))[0] == 200
    assert (await gw.api("GET", "/auth/users", token))[0] == 200
    await gw.api("PUT", f"/auth/users/{id_}", admin, {"role": "premium"})
    assert (await gw.api("GET", "/auth/users", token))[0] == 403
    _, key = await gw.key(token)
    assert (await gw.ask(key))[0] == 200
    for status in ("suspended", "inactive"):
        await gw.api("PUT", f"/auth/users/{id_}", admin, {"status": status})
        assert (await gw.api("GET", "/auth/me", token))[0] == 401
        assert (await gw.ask(key))[0] == 401
        body = {"username": "li", "password": "good enough password"}
        assert (await gw.api("POST", "/login", body=body))[0] == 403
    await gw.api("PUT", f"/auth/users/{id_}", admin, {"status": "active"})
    assert (await gw.ask(key))[0] == 200
    assert (await gw.api("DELETE", f"/auth/users/{id_}", admin))[0] == 200
    assert (await gw.ask(key))[0] == 401
    assert (await gw.api("GET", "/auth/me", token))[0] == 401


async def test_users_are_listed_in_pages(gw):
    admin = await gw.login()
    for i in range(5):
        await make(gw, admin, f"user{i}", role="premium" if i % 2 else "user")
    status, answer = await gw.api("GET", "/auth/users?page=2&page_size=4", admin)
    assert status == 200
    assert answer["data"]["total"] == 6
    assert [user["username"] for user in answer["data"]["users"]] == ["user3", "user4"]
    answer = (await gw.api("GET", "/auth/users?role=premium", admin))[1]
    assert [user["username"] for user in answer["data"]["users"]] == ["user1", "user3"]
    for query in ("page=0", "page_size=1000", "page=x", "role=king", "page=%F0%9F%98%80"):
        assert (await gw.api("GET", f"/auth/users?{query}", admin))[0] == 400, query


async def test_the_last_admin_cannot_be_lost(gw):
    admin = await gw.login()
    me = (await gw.api("GET", "/auth/me", admin))[1]["data"]["id"]
    for change in ({"role": "user"}, {"status": "suspended"}):
        assert (await gw.api("PUT", f"/auth/users/{me}", admin, change))[0] == 409
    assert (await gw.api("DELETE", f"/auth/users/{me}", admin))[0] == 409
    id_, other = await make(gw, admin, "second", role="admin")
    assert (await gw.api("PUT", f"/auth/users/{me}", other, {"role": "user"}))[0] == 200
    assert (await gw.api("PUT", f"/auth/users/{id_}", other, {"role": "user"}))[0] == 409


async def test_an_admin_sets_a_forgotten_password(gw):
    admin = await gw.login()
    id_, token = await make(gw, admin, "li")
    change = {"password": "a new one for you"}
    assert (await gw.api("PUT", f"/auth/users/{id_}", admin, change))[0] == 200
    assert (await gw.api("GET", "/auth/me", token))[0] == 401
    assert await gw.login("li", "a new one for you")


async def test_what_is_not_there_is_404(gw):
    admin = await gw.login()
    for method, path in (
        ("GET", "/auth/users/nobody"), ("PUT", "/auth/users/nobody"), ("DELETE", "/auth/users/nobody"),
        ("GET", "/api-keys/nothing"), ("PUT", "/api-keys/nothing"), ("DELETE", "/api-keys/nothing"),
        ("POST", "/api-keys/nothing/revoke"), ("GET", "/api-keys/nothing/usage"), ("GET", "/calls/no"),
    ):  # fmt: skip
        status, answer = await gw.api(method, path, admin, {} if method == "PUT" else None)
        assert (method, path, status) == (method, path, 404), answer


# Tokens.


def forged(**header_and_claims):
    now = int(time.time())
    claims = {"sub": "x", "role": "admin", "use": "login", "ver": 1, "iat": now, "exp": now + 999}
    return jwt.encode({**claims, **header_and_claims.get("claims", {})},
                      header_and_claims.get("secret", SECRET),
                      algorithm=header_and_claims.get("algorithm", "HS256"))  # fmt: skip


def b64(value) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_forged_expired_and_foreign_tokens_are_401(gw, caplog):
    caplog.set_level(logging.DEBUG)
    good = await gw.login()
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    none = {"alg": "none", "typ": "JWT"}
    nested = b64(b'{"a":' + b"[" * 2000)
    tokens = {
        "no algorithm": f"{b64(none)}.{body}.",
        "no algorithm, signed": f"{b64(none)}.{body}.{signature}",
        "another algorithm": forged(claims=claims, secret=SECRET * 2, algorithm="HS512"),
        "right secret, another algorithm": forged(
            claims=claims, secret=SECRET * 2, algorithm="HS384"
        ),
        "another secret": forged(claims=claims, secret="f" * 32),
        "empty secret": f"{head}.{body}.",
        "expired": forged(claims={**claims, "exp": 1}),
        "changed": f"{head}.{b64({**claims, 'role': 'admin', 'sub': 'other'})}.{signature}",
        "nobody": forged(claims={**claims, "sub": "nobody"}),
        "another version": forged(claims={**claims, "ver": claims["ver"] + 1}),
        "no JSON": f"eyJ{'A' * 20}.{body}.{signature}",
        "nested": f"{nested}.{body}.{signature}",
        "long": f"{head}.{'A' * 8000}.{signature}",
    }
    for path in ("/auth/me", "/api-keys", "/auth/users"):
        for name, token in tokens.items():
            status, answer = await gw.api("GET", path, token)
            assert (name, status) == (name, 401), answer
    for name, token in tokens.items():
        assert ((await gw.ask(token))[0], name) == (401, name)
    assert (await gw.api("GET", "/auth/me", good))[0] == 200
    assert "Traceback" not in caplog.text
    assert good not in caplog.text


async def test_account_routes_take_no_key_and_no_page_token(gw):
    admin = await gw.login()
    _, key = await gw.key(admin, permissions=["chat", "upload", "admin"])
    page = (await gw.api("POST", "/tokens", key, {"user": "visitor"}))[1]["data"]["token"]
    for credential in (key, page, "anything"):
        for method, path in (("GET", "/auth/me"), ("GET", "/api-keys"), ("POST", "/api-keys"),
                             ("GET", "/auth/users"), ("GET", "/api-keys/admin/all")):  # fmt: skip
            status, answer = await gw.api(
                method, path, credential, {} if method == "POST" else None
            )
            assert status == 403, answer
    for path in ("/auth/me", "/api-keys", "/auth/users"):
        status, answer = await gw.api("GET", path)
        assert status == 401
        assert "/api/v1/login" in answer["msg"]


async def test_a_login_may_chat_from_the_console(gw):
    admin = await gw.login()
    _, token = await make(gw, admin, "li")
    assert (await gw.ask(token))[0] == 200
    answer = await gw.get("/v1/models", headers={"x-api-key": token})
    assert answer.status == 200


# Passwords.


async def test_a_password_is_rehashed_when_the_parameters_change(with_accounts, database_url):
    gw = await with_accounts(database_url)
    services = gw.app[SERVICES]
    weak = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    hashed = await weak.hash(Secret("good enough password"))
    weak.close()
    user = await services.accounts.add_user("li", hashed)
    await services.directory.refresh()
    token = await gw.login("li", "good enough password")
    now = (await services.accounts.user(user.id)).password_hash
    assert now != hashed
    assert "m=64," in now
    assert (await gw.api("GET", "/auth/me", token))[0] == 200  # the password is still the same
    await gw.login("li", "good enough password")


async def test_hashing_does_not_hold_up_the_loop():
    """The real hash: the event loop keeps running while passwords are checked."""
    passwords = Passwords()
    secret = Secret("correct horse battery")
    hashed = await passwords.hash(secret)
    assert "$argon2id$" in hashed
    assert "m=65536,t=3,p=4" in hashed
    assert not passwords.is_outdated(hashed)
    gaps, running = [], True

    async def watch():
        last = time.perf_counter()
        while running:
            await asyncio.sleep(0)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watching = asyncio.ensure_future(watch())
    began = time.perf_counter()
    fits = await asyncio.gather(*(passwords.check(hashed, secret) for _ in range(6)))
    took = time.perf_counter() - began
    running = False
    await watching
    passwords.close()
    assert all(fits)
    assert len(gaps) > 100
    assert sorted(gaps)[len(gaps) * 99 // 100] < took / 6


# The first start.


async def test_without_a_password_one_is_made_up_and_shown_once(
    with_accounts, database_url, capsys, caplog
):
    caplog.set_level(logging.DEBUG)
    await with_accounts(database_url, auth={"admin_password": ""})
    gw = await with_accounts(database_url, auth={"admin_password": ""})
    shown = [line for line in capsys.readouterr().err.splitlines() if "'admin' was made" in line]
    assert len(shown) == 1
    password = shown[0].rpartition(" ")[2]
    assert len(password) >= 12
    assert await gw.login("admin", password)
    assert password not in caplog.text
