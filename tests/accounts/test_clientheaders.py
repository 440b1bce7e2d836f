"""Users that a chat client's server names in headers: plain for keys that trust them, and signed."""

import time
from typing import Any

import jwt
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.accounts.clientheaders import SIGNED, signed_user
from gateway.errors import GatewayError, InvalidToken, TokenExpired
from gateway.secret import Secret

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "sk-webui-0123456789"
BEARER = {"Authorization": f"Bearer {KEY}"}


def token(user: str = "ann", secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """As Open WebUI signs it; a claim None is left out."""
    now = int(time.time())
    whole = {
        "sub": user, "email": "ann@example.org", "name": "安", "role": "user",
        "iss": "open-webui", "iat": now, "exp": now + 300, **claims,
    }  # fmt: skip
    whole = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(whole, secret, algorithm=algorithm)


def named(*values: str) -> str:
    headers = CIMultiDictProxy(CIMultiDict([(SIGNED, value) for value in values]))
    return signed_user(headers, Secret(SECRET))


def test_the_user_is_that_of_the_signature():
    assert named(token("ann")) == "ann"


WRONG = {  # made when they are needed: they expire
    "another secret": lambda: token(secret=SECRET[::-1]),
    "no algorithm": lambda: token(secret="", algorithm="none"),
    "another algorithm": lambda: token(secret=SECRET * 2, algorithm="HS512"),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "another body": lambda: ".".join([token().split(".")[0], token("ben").split(".")[1], token().split(".")[2]]),
    "no end": lambda: token(exp=None),
    "no user": lambda: token(sub=None),
    "an empty user": lambda: token(""),
    "a long user": lambda: token("x" * 257),
    "an odd user": lambda: token("a\nb"),
    "no issuer": lambda: token(iss=None),
    "the gateway's own kind": lambda: token(iss=None, use="login", ver=1),
    "a numeric user": lambda: token(sub=1),
    "an endless end": lambda: token(exp=float("inf")),
    "a later time": lambda: token(iat=int(time.time()) + 3600),
    "oversized": lambda: token(name="x" * 20_000),
    "no token": lambda: "ann",
    "nothing": lambda: "",
    "nesting": lambda: "eyJ" + "A" * 40 + "." + "W" * 8000 + ".x",
}  # fmt: skip


@pytest.mark.parametrize("made", WRONG.values(), ids=list(WRONG))
def test_what_the_secret_did_not_sign_names_no_one(made):
    with pytest.raises(InvalidToken):
        named(made())


def test_two_headers_are_refused_though_one_is_right():
    with pytest.raises(InvalidToken):
        named(token("ann"), token("ben"))


def test_an_expired_header_is_refused_but_for_two_clocks():
    assert named(token(exp=int(time.time()) - 5)) == "ann"
    with pytest.raises(TokenExpired):
        named(token(exp=int(time.time()) - 60))


def test_the_error_for_a_missing_header_says_what_to_set():
    with pytest.raises(InvalidToken, match="FORWARD_USER_INFO_HEADER_JWT_SECRET"):
        named()


def test_no_error_holds_the_secret_or_the_token():
    for value in [made() for made in WRONG.values()]:
        with pytest.raises(GatewayError) as caught:
            named(value)
        assert SECRET not in str(caught.value)
        assert len(value) < 10 or value not in str(caught.value)


# Through the gateway.


@pytest.fixture
async def signed(gateway, demo, tmp_path):
    """A gateway whose key wants the signed header, the demo Dify and the demo OpenAI behind it."""
    dify, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
    agents = {
        "bot": {"platform": "dify", "api_key": "app-dify-key", "base_url": dify.url},
        "model": {"platform": "openai", "api_key": "sk-upstream-key", "base_url": openai.url},
    }
    key = {
        "name": "webui", "key": KEY, "permissions": ["chat", "upload"],
        "trust_client_headers": True, "client_headers_secret": SECRET,
    }  # fmt: skip
    auth = {"anonymous": False, "keys": [key], "jwt_secret": SECRET[::-1]}
    gw = await gateway(agents=agents, auth=auth, database=f"sqlite:///{tmp_path}/g.db")
    return gw, dify.demo, openai.demo


async def complete(gw: Any, headers: dict[str, str], **members: Any) -> Any:
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], **members}
    answer = await gw.post("/v1/chat/completions", body, headers={**BEARER, **headers})
    await answer.read()
    return answer


async def got(gw: Any, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    async with gw.get(path, headers=headers) as answer:
        return answer.status, await answer.json()


def users(demo: Any) -> list[str]:
    return [body["user"] for path, body in demo.requests if path == "/v1/chat-messages"]


async def test_each_user_of_one_key_is_another_user_of_the_bot(signed):
    gw, dify, _ = signed
    for user in ("ann", "ben"):
        assert (await complete(gw, {SIGNED: token(user)})).status == 200
    assert users(dify) == ["key-webui/ann", "key-webui/ben"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-OpenWebUI-User-Id": "ann"}, {SIGNED: "forged"},
     {SIGNED: "forged", "X-OpenWebUI-User-Id": "ann"}],
)  # fmt: skip
async def test_without_a_valid_signature_the_key_opens_nothing(signed, headers):
    gw, dify, _ = signed
    if SIGNED in headers:
        headers = {**headers, SIGNED: WRONG["another secret"]()}
    assert (await complete(gw, headers, user="ann")).status == 401
    everything = {**BEARER, **headers}
    body, agent = {"query": "hi", "user": "ann"}, {"Agent": "bot"}
    own = await gw.post("/api/v1/chat", body, headers={**everything, **agent})
    token_ = await gw.post("/api/v1/tokens", {"user": "ann"}, headers=everything)
    for answer in (own, token_):
        assert answer.status == 401
        await answer.read()
    status, models = await got(gw, "/v1/models", everything)
    assert (status, models["error"]["code"]) == (401, "invalid_token")
    assert not users(dify)


async def test_a_body_cannot_name_another_user_than_the_signature(signed):
    gw, dify, _ = signed
    assert (await complete(gw, {SIGNED: token("ann")}, user="ben")).status == 403
    assert (await complete(gw, {SIGNED: token("ann")}, user="ann")).status == 200
    plain = {SIGNED: token("ann"), "X-OpenWebUI-User-Id": "ben"}
    assert (await complete(gw, plain)).status == 200
    headers = {**BEARER, SIGNED: token("ann")}
    async with gw.post("/api/v1/tokens", {"user": "ben"}, headers=headers) as answer:
        assert answer.status == 403
    assert users(dify) == ["key-webui/ann"] * 2


async def test_conversations_and_data_are_the_signed_users_own(signed):
    gw, _, _ = signed
    for user in ("ann", "ben"):
        assert (await complete(gw, {SIGNED: token(user)})).status == 200
    ann = {**BEARER, SIGNED: token("ann")}
    _, page = await got(gw, "/api/v1/conversations", ann)
    assert len(page["data"]["conversations"]) == 1
    for path in ("/api/v1/conversations?user=ben", "/api/v1/users/ben/data"):
        assert (await got(gw, path, ann))[0] == 403
    assert (await got(gw, "/api/v1/users/ann/data", ann))[0] == 200


async def test_a_history_is_joined_for_its_own_user_alone(signed):
    gw, dify, _ = signed
    said = [{"role": "user", "content": "My name is Ann."}]
    first = await complete(gw, {SIGNED: token("ann")}, messages=said)
    answer = (await first.json())["choices"][0]["message"]["content"]
    said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    verdicts = []
    for user in ("ben", "ann"):
        headers = {SIGNED: token(user), "X-OpenWebUI-Chat-Id": ""}
        answer = await complete(gw, headers, messages=said)
        verdicts.append(answer.headers["x-gateway-memory"].partition(";")[0])
    assert verdicts == ["seed", "continue"]
    assert len(dify._conversations) == 2


async def test_a_signed_key_has_all_of_v1_unlike_a_page(signed):
    gw, _, openai = signed
    body = {"model": "model/embedder", "input": "text"}
    headers = {**BEARER, SIGNED: token("ann")}
    async with gw.post("/v1/embeddings", body, headers=headers) as answer:
        assert answer.status == 200
    assert openai.requests[-1][0] == "/v1/embeddings"


async def test_a_key_may_name_users_by_plain_headers_alone(gateway, demo):
    served = await demo("dify")
    agents = {"bot": {"platform": "dify", "api_key": "app-dify-key", "base_url": served.url}}
    keys = [{"name": "webui", "key": KEY, "trust_client_headers": True}]
    gw = await gateway(agents=agents, auth={"anonymous": False, "keys": keys})
    assert (await complete(gw, {"X-OpenWebUI-User-Id": "ann"}, user="ben")).status == 200
    assert (await complete(gw, {}, user="ben")).status == 200
    assert (await complete(gw, {SIGNED: token("ann")})).status == 200  # no secret: not read
    assert users(served.demo) == ["ann", "ben", "key-webui"]
    page = await gw.post("/api/v1/tokens", {"user": "visitor"}, headers=BEARER)
    visitor = {"Authorization": f"Bearer {(await page.json())['data']['token']}"}
    await complete(gw, {**visitor, "X-OpenWebUI-User-Id": "ann"})
    assert users(served.demo)[-1] == "key-webui/visitor"
