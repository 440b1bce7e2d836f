"""What clients' settings make of an address, and the one form that it gets."""

import pytest

from gateway.addresses import canonical

ADDRESSES = {
    "/v1/chat/completions": [
        "/v1/chat/completions", "//v1/chat/completions", "/v1//chat/completions",
        "/v1/chat/completions/", "/chat/completions", "//chat/completions", "/v1/v1/chat/completions",
        "/v1/v1//chat//completions//", "/api/v1/chat/completions", "/api/chat/completions",
    ],
    "/v1/models": ["//v1/models", "/v1//models", "/models", "/models/", "/api/v1/models"],
    "/v1/models/a%2Fb": ["/models/a%2Fb", "/v1/v1/models/a%2Fb/"],
    "/v1/files/file-1/content": ["/files/file-1/content", "/v1//files/file-1//content"],
    "/v1/audio/transcriptions": ["/audio/transcriptions", "/v1/v1/audio/transcriptions/"],
    "/v1/other": ["/v1//other", "/v1/v1/other", "/v1/other/"],
    "/api/v1/chat": ["/api/v1/chat/", "//api/v1/chat", "/api//v1/chat", "/v1/api/v1/chat", "/api/v1/api/v1/chat"],
    "/api/v1/agents/dify": ["/api/v1//agents/dify/", "//api/v1/agents//dify"],
    "/livez": ["//livez", "/livez/"],
    "/": ["/", "//", "///"],
    "/files/uploads/2026/a.png": ["/files/uploads/2026/a.png", "//files//uploads/2026/a.png"],
    "/page/": ["/page/", "//page/"],
    "/page": ["/page"],
    "/api/agents": ["/api/agents"],
    "*": ["*"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "wanted"), [(given, wanted) for wanted in ADDRESSES for given in ADDRESSES[wanted]]
)
def test_an_address_gets_its_one_form(given, wanted):
    assert canonical(given) == wanted
    if given != "*":
        assert canonical(f"{given}?a=//b/") == f"{wanted}?a=//b/"


@pytest.mark.parametrize("wanted", ADDRESSES)
def test_the_one_form_stays_as_it_is(wanted):
    assert canonical(wanted) is wanted


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models/", "/models", "/api/v1/models"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_models_are_found_at_any_of_them(all_five, path, method):
    gw, _ = all_five
    async with gw.client.request(method, gw.url + path) as answer:
        assert answer.status == 200
        assert bool(await answer.read()) is (method == "GET")


@pytest.mark.parametrize("path", ["//api/v1/chat", "/api/v1/chat/", "/api//v1//chat"])
async def test_errors_have_the_form_of_the_surface_that_was_meant(all_five, path):
    gw, _ = all_five
    answer = await gw.post(path, {"query": "hi"})
    assert (answer.status, (await answer.json())["code"]) == (400, 400)


@pytest.mark.parametrize(
    "path", ["/health", "/livez", "/readyz", "/metrics", "/api/v1/agents", "/"]
)
async def test_head_is_there_where_get_is(all_five, path):
    gw, _ = all_five
    async with gw.client.get(gw.url + path) as whole:
        want = whole.status, whole.content_type
    async with gw.client.head(gw.url + path) as answer:
        assert ((answer.status, answer.content_type), await answer.read()) == (want, b"")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_other_methods_of_unknown_paths_are_404(all_five, method):
    gw, _ = all_five
    async with gw.client.request(method, f"{gw.url}/v1/what/ever") as answer:
        assert answer.status == 404
    async with gw.client.request(method, f"{gw.url}/v1/chat/completions") as answer:
        assert answer.status == 405
