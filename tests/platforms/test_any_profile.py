"""Whatever a platform answers to the look-ups of its bot, the profile is one, or a clear error."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_profiles import coze, dify, fastgpt, ragflow, reply, zhipu_app

from gateway.errors import GatewayError
from gateway.platforms.base import Preliminary
from gateway.protocol.inputs import check_variables

NAMES = [
    "code", "data", "name", "title", "description", "mode", "user_input_form", "variables",
    "chatConfig", "app", "pluginInputs", "renderTypeList", "valueType", "list", "value", "key",
    "label", "type", "required", "optional", "default", "options", "max_length", "maxLength",
    "text-input", "select", "number", "json_object", "json_schema", "file", "file-list",
    "allowed_file_types", "allowed_file_extensions", "variable", "input", "parameters", "items",
    "properties", "keyword", "onboarding_info", "prologue", "suggested_questions", "welcomeText",
    "dsl", "components", "obj", "component_name", "params", "inputs", "query", "prompt_config",
    "chats", "canvas", "icon", "avatar", "icon_url", "allowed_values", "input_template", "min",
]  # fmt: skip
WORDS = [
    "", "a", "x", "Begin", "chat", "workflow", "object", "array", "string", "integer", "image",
    "document", "custom", ".PDF", "selection_list", "upload_file", "input", "numberInput",
    "fileSelect", "hidden", "knowledge", "[a]\n- [b]", "{", '{"properties": {"a": {}}}', "\x00",
    "https://[", "data:image/png;base64,AA==", "\ud800",
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.sampled_from(WORDS)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.sampled_from(WORDS), inner, max_size=6)
    ),
    max_leaves=40,
)
PLATFORMS = {
    "dify": dify,
    "dify workflow": lambda: dify(mode="workflow"),
    "coze": coze,
    "coze workflow": lambda: coze(mode="workflow", workflow_id="7"),
    "fastgpt": fastgpt,
    "ragflow": ragflow,
    "ragflow agent": lambda: ragflow(agent_id="a"),
    "zhipu": zhipu_app,
}


def wrapped(value: object) -> list[object]:
    """The value alone, and where the platforms look for it."""
    variables = {"app": {"name": "a", "chatConfig": {"variables": value, "welcomeText": "a"}}}
    return [
        value,
        {"code": 0, "data": value},
        {"code": 0, "data": {"variables": value, "input": {"parameters": value}}},
        {"code": 0, "data": {"prompt_config": {"parameters": value}, "dsl": value}},
        {"code": 200, "data": value},
        {"code": 200, "data": variables},
        {"code": 200, "data": {"app": {"pluginInputs": value}}},
        {"opening_statement": "a", "user_input_form": value},
    ]


@pytest.mark.parametrize("name", PLATFORMS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(JSON, JSON)
def test_any_answer_is_a_profile_or_an_error(name, value, variable):
    for body in wrapped(value):
        step = PLATFORMS[name]().profile()
        try:
            for _ in range(8):
                if isinstance(step, Preliminary):
                    step = step.learn(reply(body))
            data = step.data()
        except GatewayError:
            continue
        text = json.dumps(data, ensure_ascii=False)
        assert "\\u0000" not in text
        text.encode()  # which half a surrogate pair could not be
        variables = dict.fromkeys(data["inputs"]["properties"], variable)
        for is_strict in (False, True):
            check_variables(data["inputs"], variables, needs_all=True, is_strict=is_strict)
