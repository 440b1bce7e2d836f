"""Paths from clients' settings, and their canonical form."""

import pytest

from gateway.http.addresses import canonical

ADDRESSES = {
    "/v1/chat/completions": [
        "/v1/chat/completions", "//v1/chat/completions", "/v1//chat/completions",
        "/v1/chat/completions/", "/chat/completions", "//chat/completions", "/v1/v1/chat/completions",
        "/v1/v1//chat//completions//", "/api/v1/chat/completions", "/api/chat/completions",
        "/openai/v1/chat/completions", "/api/openai/v1/chat/completions", "/openai/chat/completions",
    ],
    "/v1/models": ["//v1/models", "/v1//models", "/models", "/models/", "/api/v1/models", "/openai/v1/models"],
    "/v1/models/a%2Fb": ["/models/a%2Fb", "/v1/v1/models/a%2Fb/"],
    "/v1/files/file-1/content": ["/files/file-1/content", "/v1//files/file-1//content"],
    "/v1/audio/transcriptions": ["/audio/transcriptions", "/v1/v1/audio/transcriptions/"],
    "/api/v1/audio/speech": ["/api/v1//audio/speech/", "/v1/api/v1/audio/speech"],
    "/v1/audio/translations": ["/api/v1/audio/translations"],
    "/v1/other": ["/v1//other", "/v1/v1/other", "/v1/other/", "/openai/v1/other"],
    "/openai/deployments/x/chat/completions": ["/openai/deployments/x/chat/completions"],
    "/api/v1/chat": ["/api/v1/chat/", "//api/v1/chat", "/api//v1/chat", "/v1/api/v1/chat", "/api/v1/api/v1/chat"],
    "/api/v1/agents/dify": ["/api/v1//agents/dify/", "//api/v1/agents//dify"],
    "/api/v1/conversations": ["/api/v1/conversations/", "/api/v1/api/v1/conversations", "/v1/api/v1/conversations"],
    "/api/v1/users/a/data": ["/api/v1/api/v1/users/a/data"],
    "/v1/conversations": ["/v1/conversations"],
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
