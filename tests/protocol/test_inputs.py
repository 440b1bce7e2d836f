"""The check of a question's variables against the schema of a bot's inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.difyfiles import RefusedInput
from gateway.demo.difyinputs import check_inputs
from gateway.language.sentences import in_language
from gateway.platforms.dify.profile import schema as dify_schema
from gateway.protocol.inputs import check_variables
from gateway.protocol.profile import Form

TEXT = {"type": "string", "maxLength": 5}
CHOICE = {"type": "string", "enum": ["正式", "轻松"]}
NUMBER = {"type": "number"}
RANGE = {"type": "number", "minimum": 1, "maximum": 9}
WHOLE = {"type": "integer"}
SWITCH = {"type": "boolean"}
OBJECT = {"type": "object", "x-control": "json_object"}
FILE = {"type": "object", "x-control": "file"}
FILES = {"type": "array", "items": {"type": "object"}, "maxItems": 2, "x-control": "file-list"}
CHOICES = {"type": "array", "items": CHOICE}
UNKNOWN = {"x-control": "hologram"}


def problem(schema, variables, *, required=False, needs_all=True, is_strict=True):
    inputs = {"type": "object", "properties": {"x": schema}, "required": ["x"] * required}
    return check_variables(inputs, variables, needs_all=needs_all, is_strict=is_strict)


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (TEXT, ["", "北京", "a" * 5, None]),
        (CHOICE, ["正式", "", None]),
        (NUMBER, [0, -1.5, 10**18, "5", " 5 ", "1.5", "-2", "", "  ", True]),
        (RANGE, [1, 9, "3"]),
        (WHOLE, [5, "5", 5.0]),
        (SWITCH, [True, False, "true", "FALSE", "1", "yes", "on", "off", 0, 1, 1.0]),
        (OBJECT, [{}, {"a": 1}, '{"a": 1}', "", 0, []]),
        (FILE, [{"transfer_method": "remote_url"}, ""]),
        (FILES, [[], [{}], [{}, {}], ""]),
        (CHOICES, [[], ["正式", "轻松"]]),
        (UNKNOWN, [5, "x", [], {}, True]),
    ],
)
def test_what_a_strict_platform_reads_fits(schema, values):
    assert [value for value in values if problem(schema, {"x": value})] == []


@pytest.mark.parametrize(
    ("schema", "values", "expected"),
    [
        (TEXT, ["a" * 6, 5, True, ["a"], {}], "text of at most 5 characters"),
        ({"type": "string"}, [5], "text"),
        (CHOICE, ["随便", "正式 ", 5], "one of: '正式', '轻松'"),
        (NUMBER, ["abc", "1,5", [1], {"a": 1}], "a number"),
        (RANGE, [0, 10, "0.9"], "a number from 1 to 9"),
        ({**NUMBER, "minimum": 1}, [0], "a number of at least 1"),
        ({**NUMBER, "maximum": 9}, [9.5], "a number of at most 9"),
        (WHOLE, [1.5, "1.5", "inf", "nan"], "a whole number"),
        (SWITCH, ["maybe", 2, -1, [], {}], "true or false"),
        (OBJECT, ["text", "[1]", [1], 5, "{"], "a JSON object"),
        (FILE, ["https://x.test/a.png", [{}], 5], "an object that describes a file"),
        (FILES, [[{}] * 3, {}, ["a"], "a"], "a list of files with at most 2 items"),
        ({"type": "array"}, [5, "a"], "a list"),
        (CHOICES, [["随便"], "正式"], "a list of: '正式', '轻松'"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_expected(schema, values, expected):
    for value in values:
        error = problem(schema, {"x": value})
        assert error is not None, value
        assert error.status == 400
        assert (str(error), error.param) == (
            f"The variable 'x' must be {expected}.",
            "variables.x",
        )
        chinese = in_language(error.message, "zh")
        assert chinese.startswith("变量 'x' 必须是")
        assert not {"must", "text", "list", "number"} & set(chinese.split())


def test_a_required_variable_may_be_missing():
    missing = "The variable 'x' is missing: it must be text of at most 5 characters."
    for variables in ({}, {"x": None}, {"y": "a"}):
        assert str(problem(TEXT, variables, required=True)) == missing
        assert problem(TEXT, variables) is None
        assert problem(TEXT, variables, required=True, needs_all=False) is None
        assert problem({**TEXT, "default": "a"}, variables, required=True) is None
    assert problem(TEXT, {"x": ""}, required=True) is None


def test_without_strictness_a_value_is_sent_as_text():
    def fits(schema, value):
        return problem(schema, {"x": value}, is_strict=False) is None

    assert fits({"type": "string", "enum": ["5", "true"]}, 5)
    assert fits({"type": "string", "enum": ["5", "true"]}, True)
    assert fits({"type": "string"}, {"file_id": "7"})
    assert not fits(TEXT, 123456)
    assert not fits(CHOICE, ["正式"])
    assert fits(CHOICES, '["正式"]')


def test_unknown_variables_are_not_looked_at():
    assert problem(TEXT, {"y": [{}] * 1000, "": 5}) is None


def test_an_error_lists_a_few_of_many_options():
    options = [f"{n}" * 200 for n in range(500)]
    error = problem({"type": "string", "enum": options}, {"x": "a"})
    assert len(str(error)) < 2000
    assert str(error).endswith("…', ….")


# Whatever the caller sends, the gateway refuses nothing that Dify accepts.


NAMES = st.sampled_from(["a", "b", "c"])
FIELDS = st.fixed_dictionaries(
    {
        "variable": NAMES,
        "label": st.just("L"),
        "required": st.booleans(),
        "options": st.lists(st.sampled_from(["x", "y", "正式", ""]), max_size=3),
        "max_length": st.sampled_from([None, 0, 1, 3, 48]),
        "default": st.sampled_from([None, "", "x", "5", True]),
    }
)
CONTROLS = st.sampled_from(
    ["text-input", "paragraph", "select", "number", "checkbox", "json_object", "file", "file-list"]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", " ", "x", "y", "5", " 5.5 ", "1_0", "true", "No", "maybe", "{}", "[1]"]),
    st.text("a5 .中\x00{", max_size=5),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=2), st.lists(st.just({}), max_size=4),
    st.dictionaries(st.text("ab", max_size=2), SCALARS, max_size=2),
)  # fmt: skip


@given(st.lists(st.tuples(CONTROLS, FIELDS), max_size=3), st.dictionaries(NAMES, VALUES))
def test_nothing_is_refused_that_dify_accepts(fields, inputs):
    form = [{control: field} for control, field in fields]
    read = [{**field, "kind": control} for control, field in fields]
    error = check_variables(dify_schema(read, (), ()), inputs, needs_all=True, is_strict=True)
    if error is not None and len({field["variable"] for _, field in fields}) == len(fields):
        with pytest.raises(RefusedInput):
            check_inputs(form, inputs)


@given(
    st.dictionaries(
        st.text("ab中\x00\ud800", max_size=3),
        st.recursive(
            st.none() | st.text("ab中\x00\ud800", max_size=3) | st.integers(-3, 3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["type", "enum", "items", "maxLength", "x-control"]), inner
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.dictionaries(st.text("ab中\x00\ud800", max_size=3), VALUES, max_size=4),
    st.booleans(),
)
def test_any_form_gives_a_schema_that_can_be_checked(about, variables, is_strict):
    """Whatever a platform tells of its inputs."""
    form = Form()
    for name, each in about.items():
        fields = [{"variable": name, "kind": "select", "options": each, "max_length": each}]
        for schema in dify_schema(fields, (), ())["properties"].values():
            form.add(name, schema, required=True, default=each)
    error = check_variables(form.schema(), variables, needs_all=True, is_strict=is_strict)
    assert error is None or error.param.startswith("variables.")
