"""Paths as clients send them, at a running gateway; HEAD, and unsupported methods."""

import aiohttp
import pytest


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


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/v1/chat", "POST"), ("PUT", "/health", "GET, HEAD"),
        ("DELETE", "/api/v1/agents", "GET, HEAD"), ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/models/dify", "GET, HEAD"), ("DELETE", "/v1/files", "GET, HEAD, POST"),
        ("PATCH", "/v1/files/file-1", "DELETE, GET, HEAD"), ("HEAD", "/v1/chat/completions", "POST"),
    ],
)  # fmt: skip
async def test_405_names_the_methods_of_the_path(all_five, method, path, allowed):
    gw, _ = all_five
    async with gw.client.request(method, gw.url + path) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, allowed)
        assert method == "HEAD" or f"{method} is not possible here" in await answer.text()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_other_methods_of_unknown_paths_are_404(all_five, method):
    gw, _ = all_five
    async with gw.client.request(method, f"{gw.url}/v1/what/ever") as answer:
        assert answer.status == 404
    async with gw.client.request(method, f"{gw.url}/v1/chat/completions") as answer:
        assert answer.status == 405


async def test_the_content_of_a_file_has_a_head_without_a_body(gateway, demo):
    served = await demo("dify")
    agents = {"dify": {"platform": "dify", "api_key": "app-1", "base_url": served.url}}
    gw = await gateway(agents=agents)
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", b"hello", filename="a.txt")
    async with gw.client.post(f"{gw.url}/v1/files", data=form) as made:
        id_ = (await made.json())["id"]
    for path in (f"/v1/files/{id_}", f"/v1/files/{id_}/content"):
        async with gw.client.head(gw.url + path) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
