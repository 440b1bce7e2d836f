"""The profile of a bot, read from the answers of real servers and from the contracts."""

import json
from pathlib import Path

import pytest
from test_fastgpt_captures import capture

from gateway.errors import GatewayError
from gateway.platforms.base import Preliminary
from gateway.platforms.coze.adapter import Coze
from gateway.platforms.coze.options import CozeOptions
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.options import DifyOptions
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.platforms.ragflow.adapter import RAGFlow
from gateway.platforms.ragflow.options import RAGFlowOptions
from gateway.platforms.zhipu.adapter import zhipu
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import ChatRequest, Message
from gateway.protocol.profile import MAX_DEPTH, object_schema

FOLDER = Path(__file__).parent / "captures" / "dify"
MB = 1 << 20
VERSIONS = ("0.15.3", "1.16.0")
CALLS = ("info", "parameters", "site")
ON = {"suggestions": True, "citations": True, "speech_to_text": False, "text_to_speech": False}


def dify(**options) -> Dify:
    return Dify("d", DifyOptions(platform="dify", api_key="app-k", **options), "https://d.test")


def captured(version: str, name: str) -> UpstreamReply:
    head, _, body = (FOLDER / version / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    return UpstreamReply(int(head.split()[1]), {}, body)


def reply(value: object, status: int = 200) -> UpstreamReply:
    return UpstreamReply(status, {}, json.dumps(value).encode())


def answered(platform, *replies: UpstreamReply) -> tuple[dict, list[str]]:
    """The profile as JSON, and the addresses that were asked for it."""
    step, asked = platform.profile(), []
    for each in replies:
        assert isinstance(step, Preliminary)
        asked.append(step.request.url.partition(".test")[2])
        step = step.learn(each)
    return step.data(), asked


def of_dify(version: str, app: str, parameters: str = "", **options) -> dict:
    names = [f"{app}_get_{call}" for call in CALLS]
    names[1] = parameters or names[1]
    profile, asked = answered(dify(**options), *[captured(version, name) for name in names])
    assert asked == ["/v1/info", "/v1/parameters", "/v1/site"]
    return profile


# Dify.


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dify_chat_has_all_that_its_author_wrote(version):
    has_site = version != "0.15.3"  # which answers 404 with a page
    assert of_dify(version, "chat", "chat_inputs_get_parameters") == {
        "title": "聊天助手",
        "description": "基础聊天",
        "icon": {"emoji": "🤖", "background": "#FFEAD5"} if has_site else None,
        "opening": "你好，我是开场白👋",
        "suggestions": ["你会什么？"],
        "inputs": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 48, "title": "姓名"},
                "lang": {"type": "string", "enum": ["中文", "English"], "title": "语言"},
            },
            "required": ["name"],
        },
        "files": {
            "kinds": ["file", "image"],
            "max_files": 3,
            "max_bytes": {"file": 15 * MB, "image": 10 * MB},
            "transfer": ["url", "upload"],
        },
        "features": ON,
    }


def test_a_workflows_question_and_files_are_no_inputs():
    profile = of_dify("1.16.0", "workflow")
    assert profile["inputs"] == {
        "type": "object",
        "properties": {"count": {"type": "number", "title": "count"}},
        "required": [],
    }
    assert profile["files"]["kinds"] == ["image"]
    assert profile["files"]["max_files"] == 1


def test_another_input_for_the_question_leaves_query_open():
    inputs = of_dify("1.16.0", "workflow", input_variable="count")["inputs"]
    assert (list(inputs["properties"]), inputs["required"]) == (["query"], ["query"])
    assert inputs["properties"]["query"]["x-control"] == "textarea"


def test_a_completions_question_is_no_input():
    names = ("completion_get_info", "completion_get_parameters", "chat_get_site")
    replies = [captured("0.15.3", name) for name in names]
    profile, _ = answered(dify(mode="completion"), *replies)
    assert profile["inputs"]["properties"] == {}


def test_an_input_that_the_configuration_fills_is_optional():
    told = of_dify("1.16.0", "chat", "chat_inputs_get_parameters", inputs={"name": "甲"})
    assert told["inputs"]["required"] == []
    assert "甲" not in json.dumps(told, ensure_ascii=False)


@pytest.mark.parametrize(
    ("version", "name", "words"),
    [
        ("0.15.3", "get_parameters_bad_key", "key"),
        ("1.16.0", "disabled_get_parameters", "disabled"),
        ("1.16.0", "unpublished_get_parameters", "unavailable"),
    ],
)
def test_a_refusal_of_dify_is_its_error(version, name, words):
    step = dify().profile().learn(captured(version, "chat_get_info"))
    with pytest.raises(GatewayError, match=f"(?i){words}"):
        step.learn(captured(version, name))


def test_an_app_without_a_site_has_no_icon():
    no_site = reply({"code": "forbidden", "message": "no site", "status": 403}, 403)
    replies = [captured("1.16.0", f"chat_get_{call}") for call in ("info",)]
    replies.append(captured("1.16.0", "chat_inputs_get_parameters"))
    profile, _ = answered(dify(), *replies, no_site)
    assert (profile["icon"], profile["title"]) == (None, "聊天助手")


CONTROLS = [
    ({"text-input": {"default": "北京", "max_length": 48}},
     {"type": "string", "maxLength": 48, "default": "北京"}),
    ({"text-input": {"default": "too long", "max_length": 3}}, {"type": "string", "maxLength": 3}),
    ({"paragraph": {"max_length": 0}}, {"type": "string", "x-control": "textarea"}),
    ({"select": {"options": ["a", "b"], "default": "c"}}, {"type": "string", "enum": ["a", "b"]}),
    ({"select": {"options": ["a", "a"]}}, {"type": "string", "enum": ["a"]}),
    ({"select": {"options": ["a", 5]}}, {"type": "string"}),  # no caller could choose 5
    ({"select": {"options": [f"{n}" for n in range(501)]}}, {"type": "string"}),
    ({"number": {"default": "5"}}, {"type": "number", "default": 5}),
    ({"number": {"default": ""}}, {"type": "number"}),
    ({"checkbox": {"default": True}}, {"type": "boolean", "default": True}),
    ({"json_object": {}}, {"type": "object", "x-control": "json_object"}),
    ({"json_object": {"json_schema": '{"type": "object", "required": ["a"], "properties": {'
                                     '"a": {"type": "integer", "minimum": 1, "x": 5}}}'}},
     {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}},
      "required": ["a"], "x-control": "json_object"}),
    ({"json_object": {"json_schema": "{"}}, {"type": "object", "x-control": "json_object"}),
    ({"file": {}}, {"type": "object", "x-control": "file", "x-file": {"max_files": 1}}),
    ({"file": {"allowed_file_types": ["document", "custom"], "allowed_file_extensions": [".PSD"],
               "allowed_file_upload_methods": ["local_file"]}},
     {"type": "object", "x-control": "file", "x-file": {
         "kinds": ["file"], "extensions": ["psd"], "max_files": 1, "transfer": ["upload"]}}),
    ({"file-list": {"max_length": 4, "allowed_file_types": ["image"]}},
     {"type": "array", "items": {"type": "object"}, "maxItems": 4, "x-control": "file-list",
      "x-file": {"kinds": ["image"], "max_files": 4}}),
    ({"text-input": {"hide": True}}, {"type": "string", "x-hidden": True}),
    ({"hologram": {}}, {"x-control": "hologram"}),
    ({"external_data_tool": {}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "expected"), CONTROLS)
def test_each_control_of_dify_has_its_schema(entry, expected):
    ((control, about),) = entry.items()
    form = [{control: {"variable": "x", **about}}]
    told = {"opening_statement": "", "user_input_form": form}
    info = captured("1.16.0", "chat_get_info")
    profile, _ = answered(dify(), info, reply(told), captured("1.16.0", "chat_get_site"))
    assert profile["inputs"]["properties"].get("x") == expected


# What a platform sends is cleaned and bounded.


ODD = [
    {}, {"name": 5, "mode": []}, {"name": "a\x00b\u202ec" + "x" * 9999},
    {"user_input_form": [5, {"select": 5}, {"select": {"variable": {}, "options": {}}}]},
    {"user_input_form": [{"text-input": {"variable": "v" * 201}}] * 5},
    {"user_input_form": [{"number": {"variable": f"n{n}", "default": 1e300}} for n in range(999)]},
    {"suggested_questions": [None, "", {}, *["q" * 9999] * 999], "opening_statement": "z" * 99999},
    {"file_upload": {"enabled": True, "number_limits": -1}, "system_parameters": [1]},
]  # fmt: skip


@pytest.mark.parametrize("told", ODD)
def test_odd_answers_of_dify_are_bounded(told):
    body = reply({"mode": "chat", "x": 1, **told})
    profile, _ = answered(dify(), body, body, body)
    text = json.dumps(profile, ensure_ascii=False)
    assert len(text) < 60_000
    assert not {"\x00", "\u202e"} & set(text)
    assert len(profile["inputs"]["properties"]) <= 100
    assert len(profile["title"]) <= 200


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("https://x.test/a.png?sign=1", True),
        ("http://x.test/a.png", True),
        ("javascript:alert(1)", False),
        ("data:image/png;base64,AAAA", False),
        ("/icon/logo.svg", False),
        ("https://user:pass@x.test/a", False),
        ("https://[", False),
        ("https://x.test/" + "a" * 2000, False),
        (5, False),
    ],
)
def test_an_icon_is_an_http_link_or_missing(link, shown):
    bot = {"name": "b", "icon_url": link}
    profile, _ = answered(coze(), reply({"code": 0, "data": bot}))
    assert profile["icon"] == ({"url": link} if shown else None)


# Coze.


def coze(**options) -> Coze:
    given = {"platform": "coze", "api_key": "pat_k", "bot_id": "7", **options}
    return Coze("c", CozeOptions(**given), "https://c.test")


BOT = {
    "name": "天气小助手",
    "description": "查询天气",
    "icon_url": "https://img.test/bot.png",
    "prompt_info": {"prompt": "the secret prompt"},
    "onboarding_info": {"prologue": "想查哪座城市？", "suggested_questions": ["北京冷吗？"]},
    "suggest_reply_info": {"reply_mode": "enable"},
    "voice_info_list": [{"voice_id": "1"}],
    "variables": [
        {"keyword": "city", "description": "城市", "default_value": "北京", "channel": "custom"},
        {"keyword": "off", "enable": False, "channel": "custom"},
        {"keyword": "sys_uuid", "channel": "system"},
    ],
}


def test_a_coze_bot_tells_all_but_its_prompt():
    profile, asked = answered(coze(), reply({"code": 0, "msg": "", "data": BOT}))
    assert asked == ["/v1/bots/7?is_published=true"]
    assert profile == {
        "title": "天气小助手",
        "description": "查询天气",
        "icon": {"url": "https://img.test/bot.png"},
        "opening": "想查哪座城市？",
        "suggestions": ["北京冷吗？"],
        "inputs": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "城市", "default": "北京"}},
            "required": [],
        },
        "files": {
            "kinds": ["audio", "file", "image", "video"],
            "max_files": None,
            "max_bytes": {},
            "transfer": ["url", "upload"],
        },
        "features": {**ON, "citations": False, "text_to_speech": True},
    }


def test_a_coze_workflow_tells_its_parameters():
    parameters = {
        "USER_INPUT": {"type": "string"},
        "language": {"type": "string", "required": True, "default_value": "en"},
        "count": {"type": "integer", "required": False},
        "doc": {"type": "file", "required": True},
        "photo": {"type": "image"},
        "size": {"type": "object", "properties": {"width": {"type": "number", "required": True}}},
        "any": {"type": "object"},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    detail = {"workflow_name": "translate_file", "description": "翻译文件"}
    data = {"workflow_detail": detail, "input": {"parameters": parameters}}
    flow = coze(mode="workflow", workflow_id="75")
    profile, asked = answered(flow, reply({"code": 0, "data": data}))
    assert asked == ["/v1/workflows/75?include_input_output=true"]
    assert (profile["title"], profile["files"]["kinds"]) == ("translate_file", [])
    assert profile["inputs"] == {
        "type": "object",
        "properties": {
            "language": {"type": "string", "default": "en"},
            "count": {"type": "integer"},
            "doc": {"type": "string", "x-control": "file"},
            "photo": {"type": "string", "x-control": "image", "x-file": {"kinds": ["image"]}},
            "size": {
                "type": "object",
                "properties": {"width": {"type": "number"}},
                "required": ["width"],
            },
            "any": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["language", "doc"],
    }


def test_a_workflow_of_coze_studio_tells_its_role():
    role = {"name": "小助手", "onboarding_info": {"prologue": "你好"}}
    flow = coze(mode="workflow", workflow_id="75")
    profile, _ = answered(flow, reply({"code": 0, "data": {"role": role}}))
    assert (profile["title"], profile["opening"]) == ("小助手", "你好")


def test_a_refusal_of_coze_is_its_error():
    refusal = {"code": 4200, "msg": "no such bot", "detail": {"logid": "1"}}
    with pytest.raises(GatewayError, match="no such bot"):
        coze().profile().learn(reply(refusal))


# FastGPT.


def fastgpt(app_id: str | None = "66f0", **options) -> FastGPT:
    given = {"platform": "fastgpt", "api_key": "fastgpt-k", "app_id": app_id, **options}
    return FastGPT("f", FastGPTOptions(**given), "https://f.test")


def answer_of(version: str, name: str) -> UpstreamReply:
    found = capture(version, name)
    return UpstreamReply(found.status, {}, found.body)


@pytest.mark.parametrize("version", ["4.8.20", "4.12.2"])
def test_a_fastgpt_app_tells_its_variables(version):
    profile, asked = answered(fastgpt(), answer_of(version, "init_no_chatid"))
    assert asked == ["/api/core/chat/init?appId=66f0"]
    assert profile == {
        "title": "变量",
        "description": "",
        "icon": None,
        "opening": "你好 👋",
        "suggestions": [],
        "inputs": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "title": "姓名", "default": "无名"},
                "count": {"type": "number", "title": "次数", "default": 0},
            },
            "required": ["name"],
        },
        "files": {"kinds": [], "max_files": None, "max_bytes": {}, "transfer": []},
        "features": {**ON, "suggestions": False},
    }


def test_a_fastgpt_that_tells_no_app_has_the_default():
    profile, _ = answered(fastgpt(), answer_of("4.8.11", "init"))
    assert (profile["title"], profile["files"]["kinds"]) == ("", ["file", "image"])


def test_fastgpt_without_an_app_is_not_asked():
    profile, asked = answered(fastgpt(None))
    assert (asked, profile["features"]) == ([], dict.fromkeys(ON, False))


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"type": "select", "list": [{"label": "A", "value": "a"}]},
         {"type": "string", "enum": ["a"]}),
        ({"type": "select", "enums": [{"value": "a"}]}, {"type": "string", "enum": ["a"]}),
        ({"type": "multipleSelect", "list": [{"value": "a"}]},
         {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
        ({"type": "numberInput", "min": 1, "max": 9},
         {"type": "number", "minimum": 1, "maximum": 9}),
        ({"type": "switch", "defaultValue": False}, {"type": "boolean", "default": False}),
        ({"type": "password", "maxLength": 20},
         {"type": "string", "maxLength": 20, "writeOnly": True}),
        ({"type": "timePointSelect"}, {"type": "string", "format": "date-time"}),
        ({"type": "file", "canSelectImg": True, "maxFiles": 3},
         {"type": "array", "items": {"type": "string"}, "x-control": "file",
          "x-file": {"kinds": ["image"], "max_files": 3, "transfer": ["url"]}}),
        ({"type": "custom"}, None),
        ({"type": "internal"}, None),
        ({"type": "unheard"}, {"x-control": "unheard"}),
    ],
)  # fmt: skip
def test_each_variable_of_fastgpt_has_its_schema(about, expected):
    app = {"name": "a", "chatConfig": {"variables": [{"key": "x", **about}]}}
    profile, _ = answered(fastgpt(), reply({"code": 200, "data": {"app": app}}))
    assert profile["inputs"]["properties"].get("x") == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"renderTypeList": ["input", "reference"]}, {"type": "string"}),
        ({"renderTypeList": ["reference", "numberInput"], "selectedTypeIndex": 1, "max": 9},
         {"type": "number", "maximum": 9}),
        ({"renderTypeList": ["reference"], "valueType": "boolean"},
         {"type": "boolean", "x-control": "reference"}),
        ({"renderTypeList": ["JSONEditor"], "valueType": "arrayString"},
         {"type": "array", "x-control": "JSONEditor"}),
        ({"renderTypeList": ["fileSelect"], "canSelectFile": True},
         {"type": "array", "items": {"type": "string"}, "x-control": "file",
          "x-file": {"kinds": ["file"], "transfer": ["url"]}}),
        ({"renderTypeList": ["hidden"]}, None),
        ({"renderTypeList": 5, "selectedTypeIndex": -7}, {"x-control": ""}),
    ],
)  # fmt: skip
def test_each_input_of_a_plugin_of_fastgpt_has_its_schema(about, expected):
    app = {"name": "a", "type": "plugin", "pluginInputs": [{"key": "x", **about}]}
    profile, _ = answered(fastgpt(), reply({"code": 200, "data": {"app": app}}))
    assert profile["inputs"]["properties"].get("x") == expected


def test_the_buttons_in_fastgpts_opening_words_are_questions():
    text = "你好 [1]\n- [年假几天？]\n[怎么请假？]\n[手册](https://x.test)\n"
    app = {"name": "a", "chatConfig": {"welcomeText": text}}
    profile, _ = answered(fastgpt(), reply({"code": 200, "data": {"app": app}}))
    assert profile["suggestions"] == ["年假几天？", "怎么请假？"]
    assert profile["opening"] == "你好 [1]\n[手册](https://x.test)"


def test_fastgpts_switches_are_its_features():
    config = {
        "questionGuide": True,
        "whisperConfig": {"open": True},
        "ttsConfig": {"type": "model"},
        "fileSelectConfig": {"canSelectImg": True, "maxFiles": 4},
    }
    app = {"name": "a", "chatConfig": config}
    profile, _ = answered(fastgpt(), reply({"code": 200, "data": {"app": app}}))
    assert profile["features"] == dict.fromkeys(ON, True)
    assert (profile["files"]["kinds"], profile["files"]["max_files"]) == (["image"], 4)


# RAGFlow.


def ragflow(**options) -> RAGFlow:
    given = {"platform": "ragflow", "api_key": "ragflow-k", **(options or {"chat_id": "c1"})}
    return RAGFlow("r", RAGFlowOptions(**given), "https://r.test")


ICON = "data:image/png;base64,iVBORw0KGgo="
NO_PATH = [
    ({"code": 404, "message": "Not Found: /api/v1/chats/c1", "data": None}, 404),
    ({"code": 100, "message": "<MethodNotAllowed '405: Method Not Allowed'>"}, 200),
    ("<html>not here</html>", 405),
]
PARAMETERS = [
    {"key": "knowledge", "optional": False},
    {"key": "dept", "optional": False},
    {"key": "tone", "optional": True},
]
ASSISTANT = {
    "title": "人事助手",
    "description": "回答问题",
    "icon": {"url": ICON},
    "opening": "你好 👋",
    "suggestions": [],
    "inputs": {
        "type": "object",
        "properties": {"dept": {"type": "string"}, "tone": {"type": "string"}},
        "required": ["dept"],
    },
    "files": {"kinds": [], "max_files": None, "max_bytes": {}, "transfer": []},
    "features": {**ON, "suggestions": False},
}


def test_a_ragflow_assistant_tells_all_but_its_prompt():
    prompt = {"prologue": "你好 👋", "parameters": PARAMETERS, "quote": True, "system": "secret"}
    bot = {"name": "人事助手", "description": "回答问题", "icon": ICON, "prompt_config": prompt}
    profile, asked = answered(ragflow(), reply({"code": 0, "data": bot}))
    assert (profile, asked) == (ASSISTANT, ["/api/v1/chats/c1"])


@pytest.mark.parametrize(("body", "status"), NO_PATH)
def test_an_older_ragflow_lists_its_assistant(body, status):
    prompt = {"opener": "你好 👋", "variables": PARAMETERS, "show_quote": True, "prompt": "secret"}
    bot = {"name": "人事助手", "description": "回答问题", "avatar": ICON, "prompt": prompt}
    profile, asked = answered(ragflow(), reply(body, status), reply({"code": 0, "data": [bot]}))
    assert (profile, asked) == (ASSISTANT, ["/api/v1/chats/c1", "/api/v1/chats?id=c1"])


BEGIN = {
    "dept": {"name": "部门", "type": "options", "options": ["研发", "销售"], "optional": False},
    "note": {"name": "note", "type": "paragraph", "optional": True},
    "years": {"type": "integer", "optional": True, "value": 3},
    "full": {"type": "boolean", "optional": True},
    "doc": {"type": "file", "optional": True},
    "odd": {"type": ["line"]},
}
FIELDS = {
    "dept": {"type": "string", "enum": ["研发", "销售"], "title": "部门"},
    "note": {"type": "string", "x-control": "textarea"},
    "years": {"type": "number", "default": 3},
    "full": {"type": "boolean"},
    "doc": {"x-control": "file"},
    "odd": {"x-control": ""},
}


def graph(**params) -> dict:
    begin = {"obj": {"component_name": "Begin", "params": params}}
    return {"components": {"Agent:1": {"obj": {"component_name": "Agent"}}, "begin": begin}}


@pytest.mark.parametrize("is_text", [False, True])
def test_a_ragflow_agent_tells_the_inputs_of_its_begin(is_text):
    dsl = graph(prologue="你好", enablePrologue=True, inputs=BEGIN)
    bot = {"title": "流程", "avatar": "", "dsl": json.dumps(dsl) if is_text else dsl}
    profile, asked = answered(ragflow(agent_id="a1"), reply({"code": 0, "data": bot}))
    assert asked == ["/api/v1/agents/a1"]
    assert (profile["title"], profile["opening"], profile["icon"]) == ("流程", "你好", None)
    assert profile["inputs"]["properties"] == FIELDS
    assert profile["inputs"]["required"] == ["dept"]


def test_an_older_ragflow_agent_lists_its_inputs():
    query = [{**BEGIN[name], "key": name} for name in ("dept", "note")]
    canvas = {"title": "流程", "dsl": graph(prologue="你好", query=query, enablePrologue=False)}
    replies = [
        reply({"code": 405, "message": ""}),
        reply({"code": 0, "data": {"canvas": [canvas]}}),
    ]
    profile, asked = answered(ragflow(agent_id="a1"), *replies)
    assert asked[1] == "/api/v1/agents?id=a1"
    assert list(profile["inputs"]["properties"]) == ["dept", "note"]
    assert profile["opening"] == ""


def test_a_variable_that_the_configuration_fills_is_optional():
    bot = {"prompt_config": {"parameters": PARAMETERS}}
    filled = ragflow(chat_id="c1", variables={"dept": "研发"})
    profile, _ = answered(filled, reply({"code": 0, "data": bot}))
    assert profile["inputs"]["required"] == []


@pytest.mark.parametrize(
    ("icon", "shown"),
    [
        (ICON, True),
        ("https://x.test/a.png", True),
        ("data:image/svg+xml;base64,AAAA", False),
        ("data:text/html;base64,AAAA", False),
        ("data:image/png;base64,<b>", False),
        ("data:image/png;base64," + "A" * 100_000, False),
        ({}, False),
    ],
)
def test_an_embedded_icon_is_a_small_picture(icon, shown):
    profile, _ = answered(ragflow(), reply({"code": 0, "data": {"icon": icon}}))
    assert profile["icon"] == ({"url": icon} if shown else None)


@pytest.mark.parametrize("body", [{"code": 109, "message": "no authorization"}, {"code": 102}])
def test_a_refusal_of_ragflow_is_its_error(body):
    with pytest.raises(GatewayError):
        ragflow().profile().learn(reply(body))


ODD_BOTS = [
    [], True, "x", 5, [5], {"chats": 5}, {"canvas": []}, {"dsl": "{"}, {"dsl": {"components": 5}},
    {"dsl": {"components": {"a": 5, "b": {"obj": {"component_name": "begin", "params": []}}}}},
    {"prompt_config": {"parameters": [5, {"key": 5}, {"key": "k", "optional": "no"}], "quote": 5}},
    {"dsl": graph(inputs={f"n{n}": {"type": "line", "value": "v" * 9999} for n in range(999)})},
]  # fmt: skip


@pytest.mark.parametrize("data", ODD_BOTS)
@pytest.mark.parametrize("kind", ["chat_id", "agent_id"])
def test_odd_answers_of_ragflow_are_bounded(data, kind):
    profile, _ = answered(ragflow(**{kind: "b"}), reply({"code": 0, "data": data}))
    assert len(json.dumps(profile)) < 900_000
    assert len(profile["inputs"]["properties"]) <= 100


# Zhipu.


def zhipu_app():
    options = {"platform": "zhipu", "api": "application", "api_key": "id.secret", "app_id": "18"}
    return zhipu("z", ZhipuOptions(**options), "https://z.test")


VARIABLES = [
    {"id": "1", "name": "问题", "type": "Input", "tips": "请输入问题", "allowed_values": []},
    {"id": "2", "name": "语言", "type": "selection_list", "tips": "",
     "allowed_values": ["中文", "English"]},
    {"id": "3", "name": "语气", "type": "selection_list", "allowed_values": None,
     "input_template": {"options": ["正式"]}},
    {"id": "4", "name": "附件", "type": "upload_file", "tips": "PDF", "allowed_values": []},
    {"id": "5", "name": "奇怪", "type": "hologram"},
]  # fmt: skip


def test_a_zhipu_application_tells_its_variables():
    answer = {"data": VARIABLES, "code": 200, "message": "SUCCESS"}
    profile, asked = answered(zhipu_app(), reply(answer))
    assert asked == ["/api/llm-application/open/v2/application/18/variables"]
    assert profile["inputs"] == {
        "type": "object",
        "properties": {
            "问题": {"type": "string", "description": "请输入问题"},
            "语言": {"type": "string", "enum": ["中文", "English"]},
            "语气": {"type": "string", "enum": ["正式"]},
            "附件": {
                "type": "array",
                "items": {"type": "string"},
                "x-control": "file",
                "x-file": {"kinds": ["file"]},
                "description": "PDF",
            },
            "奇怪": {"x-control": "hologram"},
        },
        "required": [],
    }
    assert (profile["title"], profile["opening"]) == ("", "")


def test_a_known_variable_of_zhipu_is_sent_with_its_type():
    app = zhipu_app()
    app.profile().learn(reply({"data": VARIABLES, "code": 200}))
    chat = ChatRequest(
        "z", (Message("user", "hi"),), "u", conversation_id="9",
        variables={"语言": "中文", "other": 5},
    )  # fmt: skip
    content = json.loads(app.prepare(chat).body)["messages"][0]["content"]
    assert content[1:] == [
        {"type": "selection_list", "key": "语言", "value": "中文"},
        {"type": "input", "key": "other", "value": "5"},
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": "1000", "message": "身份验证失败。"}}, 401),
        ({"code": 10404, "message": "no app"}, 200),
        ({"code": 200, "data": {}}, 200),
        ("<html>", 404),
    ],
)
def test_a_refusal_of_zhipu_is_its_error(body, status):
    with pytest.raises(GatewayError):
        zhipu_app().profile().learn(reply(body, status))


def test_odd_variables_of_zhipu_are_left_out():
    odd = [5, {}, {"name": []}, {"name": "a", "type": 5}, {"name": "b", "type": "selection_list"}]
    profile, _ = answered(zhipu_app(), reply({"code": 200, "data": odd}))
    assert profile["inputs"]["properties"] == {"a": {"x-control": ""}, "b": {"type": "string"}}


# The schema of an object.


@pytest.mark.parametrize(
    "schema",
    [
        None, 5, "", "[]", "{", "\ud800", [], {"properties": 5, "required": "a"},
        {"properties": {"a": 5}}, '{"items":' * 500 + "{}" + "}" * 500,
        {"properties": {f"n{n}": {"title": "t" * 999} for n in range(999)}},
    ],
)  # fmt: skip
def test_an_odd_schema_of_an_object_is_left_out(schema):
    shown = object_schema(schema)
    assert not shown.get("properties")
    assert not shown.get("required")


def test_a_deep_schema_ends_at_a_level():
    schema = {"type": "string"}
    for _ in range(50):
        schema = {"type": "object", "properties": {"a": schema}}
    assert json.dumps(object_schema(schema)).count('"a"') == MAX_DEPTH + 1
