"""A Dify app's rules for files, read from the answers of real servers."""

import json
from pathlib import Path

import pytest

from gateway.platforms.base import Preliminary
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.filerules import file_rules
from gateway.platforms.dify.options import DifyOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import ChatRequest, Media, Message

FOLDER = Path(__file__).parent / "captures" / "dify"
CHAT = ChatRequest("dify", (Message("user", "hi"),), "u")
LINK = Media("image", "https://x.test/a.png")
DATA = Media("image", "data:image/png;base64,AAAA")
OURS = Media("image", "", stored="uploads/2026/11/22/x.png")


def captured(name: str, version: str = "1.16.0") -> dict:
    return json.loads((FOLDER / version / f"{name}.http").read_bytes().partition(b"\r\n\r\n")[2])


def rules(told: dict, mode: str):
    form = [
        {**field, "kind": kind}
        for entry in told["user_input_form"]
        for kind, field in entry.items()
    ]
    return file_rules(told, mode, form)


@pytest.mark.parametrize(
    ("name", "version", "mode", "kinds"),
    [
        ("chat_inputs_get_parameters", "1.16.0", "chat", {"image", "file"}),
        ("chat_inputs_get_parameters", "0.15.3", "chat", {"image", "file"}),
        ("chatflow_get_parameters", "0.15.3", "chat", {"image"}),
        ("workflow_get_parameters", "1.16.0", "workflow", {"image"}),  # of its file variable
    ],
)
def test_the_kinds_are_those_of_the_app(name, version, mode, kinds):
    read = rules(captured(name, version), mode)
    assert (read.kinds, read.takes_links, read.takes_uploads) == (kinds, True, True)


def test_a_workflow_without_a_field_for_files_takes_none():
    assert (
        rules({"user_input_form": [{"paragraph": {"variable": "query"}}]}, "workflow").kinds
        == set()
    )


def test_an_app_from_before_files_may_take_pictures():
    image = {"enabled": True, "number_limits": 3, "transfer_methods": ["local_file"]}
    read = rules({"user_input_form": [], "file_upload": {"image": image}}, "chat")
    assert (read.kinds, read.takes_links, read.takes_uploads) == ({"image"}, False, True)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"file_upload": None},
        {"file_upload": []},
        {"file_upload": {"enabled": True, "allowed_file_types": "image"}},
    ],
)
def test_odd_answers_do_no_harm(told):
    assert rules({"user_input_form": [], **told}, "chat").kinds <= {
        "image",
        "file",
        "audio",
        "video",
    }


def test_how_a_file_goes_follows_the_rules():
    dify = Dify("dify", DifyOptions(platform="dify", mode="chat"), "http://x")
    assert dify.delivery(LINK, CHAT) == "url"
    assert dify.delivery(DATA, CHAT) == dify.delivery(OURS, CHAT) == "upload"
    assert dify.delivery(Media("image", "https://gw/files/x", stored="x"), CHAT) == "url"


def test_what_an_app_said_is_asked_again_after_some_minutes():
    now = 0.0
    dify = Dify("dify", DifyOptions(platform="dify", mode="chat"), "http://x", clock=lambda: now)
    step = dify.learn_kinds()
    assert isinstance(step, Preliminary)
    assert step.request.url == "http://x/v1/parameters"
    off = {"user_input_form": [], "file_upload": {"enabled": False}}
    step.learn(UpstreamReply(200, {}, json.dumps(off).encode()))
    assert dify.kinds == set()
    assert dify.learn_kinds() is None
    now = 301.0
    on = {
        "user_input_form": [],
        "file_upload": {"enabled": True, "allowed_file_types": ["video", "custom"]},
    }
    dify.learn_kinds().learn(UpstreamReply(200, {}, json.dumps(on).encode()))
    assert dify.kinds == {"video", "file"}


def test_nothing_is_learned_from_a_failure():
    dify = Dify("dify", DifyOptions(platform="dify", mode="chat"), "http://x")
    dify.learn_kinds().learn(UpstreamReply(500, {}, b"oops"))
    assert dify.kinds == {"image", "file", "audio", "video"}
    assert dify.learn_kinds() is not None
