"""The shipped Grafana dashboard and Prometheus alerts use metrics that exist.

A gateway runs until it has shown every metric it has; each PromQL expression is then checked with
the types and labels of that scrape.
"""

import asyncio
import itertools
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import AGENTS, UNLIMITED, Script
from prometheus_client.parser import text_string_to_metric_families

from gateway import errors
from gateway.http.gauges import _BREAKER as BREAKER

GRAFANA = Path(__file__).parent.parent.parent / "config/grafana"
ROWS = ["Overview", "Agents", "Limits", "Stores", "Process"]
OURS = ("gateway_", "gen_ai_")


def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))


def panels(kind: str = "") -> list[dict[str, Any]]:
    """All panels but the rows, or those of that type."""
    found = dashboard()["panels"]
    return [p for p in found if p["type"] == kind or (not kind and p["type"] != "row")]


def variables() -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in dashboard()["templating"]["list"]}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yaml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


class Query(NamedTuple):
    """An expression, its location, and the labels that are named next to it."""

    where: str
    expr: str
    told: set[str]


def queries() -> list[Query]:
    out = []
    for panel in panels():
        for target in panel["targets"]:
            told = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            out.append(Query(panel["title"], target["expr"], told))
    for note in dashboard()["annotations"]["list"]:
        told = set(re.findall(r"{{\s*(\w+)\s*}}", note["textFormat"]))
        out.append(Query(note["name"], note["expr"], told))
    for alert in alerts():
        told = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        out.append(Query(alert["alert"], alert["expr"], told))
    return out


# --- the existing metrics -------------------------------------------------------------------------


class Series(NamedTuple):
    """All series of one name: its type, and the values of each label."""

    family: str
    is_counter: bool
    labels: dict[str, set[str]]


@pytest.fixture
async def exposed(gateway, demo, scripted, shared_redis, tmp_path) -> dict[str, Series]:
    """The series by name, of a gateway in which everything counted has happened."""
    dify = await demo("dify")
    word = b'data: {"event":"message","answer":"x"}\n\n'
    endless = await scripted(Script([word], end="hang"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        agents = {
            name: {**AGENTS["dify"], "base_url": url, "mode": "chat"}
            for name, url in (("bot", dify.url), ("endless", endless.url), ("away", nobody))
        }
        gw = await gateway(
            agents=agents,
            routes={"support": [{"agent": "away"}, {"agent": "bot"}]},
            database=f"sqlite:///{tmp_path}/gateway.db",
            record={"spool": str(tmp_path / "spool")},
            auth={"anonymous": True, "jwt_secret": "0123456789abcdef0123456789abcdef"},
            redis={"url": shared_redis.url, "prefix": f"dashboard-{next(_unique)}"},
            rate_limits={**UNLIMITED, "chat": "7/hour"},
        )
        calls = [("bot", "hi", False), ("bot", "hi", True), ("bot", "#fail", False)]
        calls += [("bot", "#cut", True), ("support", "hi", False)]
        for agent, question, is_streamed in calls:
            async with gw.chat(agent, question, stream=is_streamed) as answer:
                await answer.read()
        async with gw.chat("endless", "hi", stream=True) as answer:
            await answer.content.readany()  # and disconnect
        async with gw.complete("bot", "hi") as answer:
            await answer.read()
        async with gw.complete("bot", "ping", max_tokens=5) as answer:  # a background call
            await answer.read()
        async with gw.chat("bot") as answer:
            assert answer.status == 429
            await answer.read()
        async with asyncio.timeout(20):
            while not (series := await scrape(gw)).get("gateway_client_disconnects_total"):
                await asyncio.sleep(0.02)
    return series


_unique = itertools.count()


async def scrape(gw) -> dict[str, Series]:
    async with gw.get("/metrics") as answer:
        text = await answer.text()
    out: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            is_counter = family.type in ("counter", "histogram")
            series = out.setdefault(sample.name, Series(family.name, is_counter, {}))
            for label, value in sample.labels.items():
                series.labels.setdefault(label, set()).add(value)
        if not family.samples:
            out[f"# {family.name}"] = Series(family.name, False, {})
    return out


# --- PromQL, the part that is used ----------------------------------------------------------------

TOKEN = re.compile(
    r'\s*(?:(?P<string>"[^"]*")|(?P<range>\[[^\]]+\])|(?P<number>\d+(?:\.\d+)?)'
    r"|(?P<word>[A-Za-z_]\w*)|(?P<sign>[=!<>]=|[=!]~|[-+*/(){},=<>]))"
)
ARITHMETIC = {"+", "-", "*", "/", "==", "!=", "<", ">", "<=", ">="}
SETS = {"and", "or", "unless"}
SCRAPED = frozenset(("job", "instance"))  # added by Prometheus
OF_COUNTERS = {"rate", "increase"}
OF_RANGES = {*OF_COUNTERS, "changes"}


class Value(NamedTuple):
    """The value of a part of an expression: its labels (None: a number), and whether it
    is a range."""

    labels: frozenset[str] | None
    is_range: bool = False
    is_counter: bool = False


class Matcher(NamedTuple):
    label: str
    operator: str
    value: str


class Expression:
    """Parses a whole expression; AssertionErrors name what Prometheus would find no data for."""

    def __init__(self, text: str, known: dict[str, Series]) -> None:
        self._known = known
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            match = TOKEN.match(text, at)
            assert match, f"cannot be read: {text[at:]!r}"
            at = match.end()
            self._tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
        self._tokens.append(("end", ""))
        self.used: set[str] = set()
        self.selectors: list[tuple[str, list[Matcher]]] = []  # (name, its matchers)
        result = self._binary()
        assert self._kind == "end", f"stops at {self._tokens[0][1]!r}"
        self.labels = self._instant(result).labels or frozenset()

    @property
    def _kind(self) -> str:
        return self._tokens[0][0]

    def _next(self, *wanted: str) -> str:
        kind, word = self._tokens.pop(0)
        assert not wanted or kind in wanted or word in wanted, f"{word!r} instead of {wanted}"
        return word

    def _has(self, word: str) -> bool:
        return self._tokens[0] in (("sign", word), ("word", word))

    def _binary(self) -> Value:
        """Precedence is ignored: it does not change the labels."""
        left = self._one()
        while self._tokens[0][1] in ARITHMETIC | SETS:
            operator, right = self._next(), None
            left, right = self._instant(left), self._instant(self._one())
            if left.labels is None or right.labels is None:
                left = right if left.labels is None else left
            elif operator == "or":
                left = Value(left.labels | right.labels)
            else:
                differ = f"{sorted(left.labels)} {operator} {sorted(right.labels)} match never"
                assert left.labels == right.labels, differ
        return left

    def _instant(self, value: Value) -> Value:
        assert not value.is_range, "a range where one value is wanted"
        assert not value.is_counter, "a counter without rate() or increase()"
        return value

    def _one(self) -> Value:
        if self._kind == "number":
            self._next()
            return Value(None)
        if self._has("("):
            return self._in_brackets()[0]
        word = self._next("word")
        if word in ("sum", "min", "max", "count"):
            return self._aggregate()
        return self._call(word) if self._has("(") else self._selector(word)

    def _in_brackets(self) -> list[Value]:
        self._next("(")
        out = []
        while not self._has(")"):
            if self._kind == "string":
                self._next()
            else:
                out.append(self._binary())
            if not self._has(")"):
                self._next(",")
        self._next(")")
        return out

    def _names(self) -> frozenset[str]:
        self._next("(")
        names = [self._next("word")]
        while self._next(",", ")") == ",":
            names.append(self._next("word"))
        return frozenset(names)

    def _aggregate(self) -> Value:
        names: frozenset[str] = frozenset()
        if self._has("by"):
            self._next()
            names = self._names()
        (value,) = self._in_brackets()
        labels = self._instant(value).labels or frozenset()
        assert names <= labels, f"no label {sorted(names - labels)}"
        return Value(names)

    def _call(self, name: str) -> Value:
        if name == "label_replace":
            to = self._tokens[_comma(self._tokens, 1) + 1][1].strip('"')
            of = self._tokens[_comma(self._tokens, 3) + 1][1].strip('"')
            (value,) = self._in_brackets()
            assert of in (value.labels or ()), f"no label {of!r}"
            return Value((value.labels or frozenset()) | {to})
        values = self._in_brackets()
        if name in OF_RANGES:
            (value,) = values
            assert value.is_range, f"{name}() wants a range"
            assert value.is_counter == (name in OF_COUNTERS), f"{name}() of the wrong type"
            return Value(value.labels)
        if name == "histogram_quantile":
            labels = self._instant(values[1]).labels or frozenset()
            assert "le" in labels, "histogram_quantile() without le"
            return Value(labels - {"le"})
        results = {"time": None, "vector": frozenset(), "absent": frozenset()}
        assert name in results, f"unknown function {name}()"
        return Value(results[name])

    def _selector(self, name: str) -> Value:
        if name not in self._known:
            raise AssertionError(f"no metric {name}")
        self.used.add(self._known[name].family)
        labels = SCRAPED | self._known[name].labels.keys()
        matchers: list[Matcher] = []
        self.selectors.append((name, matchers))
        if self._has("{"):
            self._next()
            while not self._has("}"):
                label, operator = self._next("word"), self._next("=", "!=", "=~", "!~")
                assert label in labels, f"{name} has no label {label!r}"
                matchers.append(Matcher(label, operator, self._next("string")[1:-1]))
                if not self._has("}"):
                    self._next(",")
            self._next("}")
        is_range = self._kind == "range"
        if is_range:
            assert re.fullmatch(r"\[(\$__rate_interval|\d+[smhd])\]", self._next())
        return Value(frozenset(labels), is_range, self._known[name].is_counter)


def _comma(tokens: list[tuple[str, str]], which: int) -> int:
    """The position of the comma with that number in the brackets that open here."""
    depth, seen = 0, 0
    for i, (_, word) in enumerate(tokens):
        depth += (word in ("(", "{")) - (word in (")", "}"))
        seen += word == "," and depth == 1
        if seen == which:
            return i
    raise AssertionError("too few arguments")


def read_all(known: dict[str, Series]) -> Iterator[tuple[Query, Expression]]:
    for query in queries():
        try:
            yield query, Expression(query.expr, known)
        except AssertionError as error:
            raise AssertionError(f"{query.where}: {error}\n{query.expr}") from error


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("sum (rate(nothing_total[5m]))", "no metric"),
        ('sum (rate(calls_total{color="red"}[5m]))', "has no label"),
        ("sum by (color) (rate(calls_total[5m]))", "no label"),
        ("sum (calls_total)", "without rate"),
        ("rate(calls_total)", "wants a range"),
        ("rate(up_now[5m])", "wrong type"),
        ("histogram_quantile(0.9, sum by (agent) (rate(calls_total[5m])))", "without le"),
        ("sum by (agent) (up_now) / sum (up_now)", "match never"),
        ("rates(calls_total[5m])", "unknown function"),
        ("sum (up_now", "instead of"),
        ("up_now up_now", "stops at"),
        ("up_now; up_now", "cannot be read"),
    ],
)
def test_expressions_without_data_are_reported(wrong, why):
    known = {
        "calls_total": Series("calls", True, {"agent": {"bot"}}),
        "up_now": Series("up_now", False, {"agent": {"bot"}}),
    }
    with pytest.raises(AssertionError, match=why):
        Expression(wrong, known)


# --- the expressions ------------------------------------------------------------------------------


async def test_expressions_use_only_metrics_and_labels_that_there_are(exposed):
    assert len(list(read_all(exposed))) > 50


async def test_every_metric_of_ours_is_shown_or_watched(exposed):
    silent = [name for name in exposed if name.startswith("#")]
    assert silent == [], "the calls above are to bring out all of them, or their labels are unknown"
    used = set().union(*(expression.used for _, expression in read_all(exposed)))
    ours = {series.family for series in exposed.values() if series.family.startswith(OURS)}
    assert ours - used == set()


async def test_legends_and_alerts_name_labels_that_the_result_has(exposed):
    for query, expression in read_all(exposed):
        assert query.told <= expression.labels, query
        if expression.labels and any(query.where == panel["title"] for panel in panels()):
            assert query.told == expression.labels, f"{query.where}: lines with the same name"


async def test_values_that_are_asked_for_occur(exposed):
    for query, expression in read_all(exposed):
        for name, matchers in expression.selectors:
            for label, operator, value in matchers:
                if "$" not in value and operator in ("=", "=~"):
                    there = exposed[name].labels[label]
                    assert any(re.fullmatch(value, one) for one in there), (query.where, value)


async def test_panels_follow_the_choice_of_job_instances_and_agents(exposed):
    choices = {"job": "$job", "instance": "$instance"}
    agents = {"agent": "$agent", "gen_ai_agent_name": "$agent"}
    watched = {alert["alert"] for alert in alerts()}
    for query, expression in read_all(exposed):
        for name, matchers in expression.selectors if query.where not in watched else ():
            labels = exposed[name].labels
            wanted = choices | {label: agents[label] for label in agents if label in labels}
            told = {matcher.label: matcher.value for matcher in matchers}
            assert wanted.items() <= told.items(), query


def test_the_error_share_excludes_callers_faults_only():
    known: list[Any] = [
        c for c in vars(errors).values() if isinstance(c, type) and hasattr(c, "code")
    ]
    theirs = {c.code for c in known if c.status < 500 and c.status != 429}
    left_out = variables()["callers_fault"]["query"]
    assert set(left_out.split("|")) <= theirs | {"client_disconnected"}
    assert "client_disconnected" in left_out
    ours = {c.code for c in known if c.type == "upstream_error" and c.status > 500}
    assert ours & set(left_out.split("|")) == set()
    written_out = re.findall(r'error_type!~"([^"]*)"', str([alert["expr"] for alert in alerts()]))
    assert set(written_out) == {left_out}, "alerts and dashboard speak of the same share"


# --- the dashboard --------------------------------------------------------------------------------


def test_the_dashboard_is_for_grafana_11_and_can_be_read():
    text = (GRAFANA / "dashboard.json").read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    assert dashboard()["schemaVersion"] >= 39
    assert dashboard()["title"] == "AI Gateway"
    assert "id" not in dashboard(), "which is the number in somebody's Grafana"


def test_its_variables_choose_source_job_instances_and_agents():
    found = variables()
    assert list(found) == ["datasource", "job", "instance", "agent", "callers_fault"]
    assert (found["datasource"]["type"], found["datasource"]["query"]) == (
        "datasource",
        "prometheus",
    )
    assert not found["job"]["multi"]
    for name in ("instance", "agent"):
        assert found[name]["multi"], name
        assert found[name]["includeAll"], name
        assert found[name]["allValue"] == ".+", "so that what comes later is there too"


async def test_its_variables_are_found_in_the_metrics(exposed):
    for name in ("job", "instance", "agent"):
        variable = variables()[name]
        selector, label = re.fullmatch(
            r"label_values\((.*), (\w+)\)", variable["definition"]
        ).groups()
        assert variable["query"]["query"] == variable["definition"]
        assert label in Expression(selector, exposed).labels


def test_all_variables_in_use_are_declared():
    builtin = {"__rate_interval", "__all"}
    text = (GRAFANA / "dashboard.json").read_text("utf-8")
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text))
    assert used - builtin == set(variables())


def test_panels_ask_the_chosen_source():
    source = {"type": "prometheus", "uid": "${datasource}"}
    asked = [target for panel in panels() for target in (panel, *panel["targets"])]
    asked += dashboard()["annotations"]["list"]
    asked += [v for v in variables().values() if v["type"] == "query"]
    assert [one for one in asked if one["datasource"] != source] == []


def test_ids_are_unique():
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        names = [target["refId"] for target in panel["targets"]]
        assert len(names) == len(set(names)), panel["title"]


def test_panels_do_not_overlap_and_are_in_order():
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    for at in places:
        assert at["x"] >= 0, at
        assert at["w"] > 0, at
        assert at["h"] > 0, at
        assert at["x"] + at["w"] <= 24, at
    for a, b in itertools.combinations(places, 2):
        is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        is_below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert is_beside or is_below, (a, b)
    assert places == sorted(places, key=lambda at: (at["y"], at["x"]))


def test_the_rows_are_those_that_one_looks_for():
    assert [row["title"] for row in panels("row")] == ROWS


def test_each_panel_says_what_it_means_in_which_unit():
    for panel in panels():
        assert panel["title"].isascii(), panel["title"]
        assert len(panel["description"]) > 60, panel["title"]
        assert re.search(r"\.$", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def unit_of(expr: str) -> set[str]:
    """The units that fit an expression's value."""
    if "histogram_quantile" in expr or expr.startswith("max by (instance) (time()"):
        return {"s"}
    if re.search(r"\) / sum", expr):
        return {"percentunit"}
    if "process_cpu_seconds" in expr:
        return {"short"}  # CPUs
    if "rate(" in expr:
        return {"cpm"} if expr.startswith("60 * ") else {"cps", "reqps"}
    return {"bytes"} if "_bytes{" in expr else {"short"}


def test_units_fit_the_expressions():
    for panel in panels():
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert unit in unit_of(target["expr"]), (panel["title"], unit)


@pytest.fixture
def words() -> Callable[[str], dict[str, str]]:
    """The texts for the values of a state timeline, by its title."""

    def of(title: str) -> dict[str, str]:
        (panel,) = (panel for panel in panels("state-timeline") if panel["title"] == title)
        (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
        return {value: told["text"] for value, told in mapping["options"].items()}

    return of


def test_states_have_texts(words: Callable[[str], dict[str, str]]):
    assert words("Stores") == {"0": "down", "1": "up"}
    assert words("Configuration problem")["1"] == "cannot be taken"
    assert words("Stopping")["1"] == "draining"


def test_the_dashboards_breaker_states_are_the_gateways(words):
    assert words("Circuit breakers") == {str(value): name for name, value in BREAKER.items()}


# --- the alerts -----------------------------------------------------------------------------------


def test_alerts_have_a_name_a_severity_and_say_what_to_do():
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert re.fullmatch(r"Gateway[A-Za-z]+", alert["alert"])
        assert alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]
        assert len(alert["annotations"]["description"]) > 100, alert["alert"]
        assert re.fullmatch(r"\d+m", alert.get("for", "1m")), alert["alert"]


def test_a_store_may_be_unavailable_for_a_moment():
    patient = {alert["alert"]: alert.get("for") for alert in alerts()}
    for store in ("Database", "Redis", "Storage"):
        assert patient[f"Gateway{store}Down"] in ("2m", "5m"), store


def test_a_breaker_between_two_failed_trials_counts_as_open():
    (alert,) = (alert for alert in alerts() if alert["alert"] == "GatewayBreakerOpen")
    assert "gateway_breaker_state == 2" in alert["expr"]
    assert re.search(r"state == 1 and increase\(gateway_breaker_opened_total", alert["expr"])
