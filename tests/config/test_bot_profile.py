"""The option `profile` of an agent."""

import pytest
import yaml
from problems import problems

from gateway.config.load import parse


def text(**profile) -> str:
    agent = {"platform": "n8n", "base_url": "https://n8n.test/webhook/x", "profile": profile}
    return yaml.safe_dump({"agents": {"a": agent}})


def shown(**profile) -> dict:
    return parse(text(**profile), {}).agents["a"].profile.shown


def test_only_what_the_file_says_is_shown():
    assert shown() == {}
    assert shown(title="人事", suggestions=[]) == {"title": "人事", "suggestions": []}


@pytest.mark.parametrize(
    ("icon", "expected"),
    [
        ("🌴", {"emoji": "🌴"}),
        ("https://x.test/a.png?v=1", {"url": "https://x.test/a.png?v=1"}),
        ({"emoji": "🌴", "background": "#FFEAD5"}, {"emoji": "🌴", "background": "#FFEAD5"}),
        ({"url": "http://x.test/a.png"}, {"url": "http://x.test/a.png"}),
    ],
)
def test_an_icon_is_a_link_or_an_emoji(icon, expected):
    assert shown(icon=icon) == {"icon": expected}


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ({"icon": {"background": "#fff"}}, "profile.icon: give url or emoji, one of them"),
        ({"icon": {"url": "http://x", "emoji": "🌴"}}, "give url or emoji, one of them"),
        ({"icon": "javascript://x.test"}, "profile.icon.url: "),
        ({"icon": "https://u:p@x.test/a.png"}, "profile.icon.url: "),
        ({"icon": "🌴" * 21}, "profile.icon.emoji: "),
        ({"title": ""}, "profile.title: "),
        ({"suggestions": ["a", ""]}, "profile.suggestions[1]: "),
        ({"suggestions": ["a"] * 51}, "profile.suggestions: "),
        ({"opning": "x"}, "profile.opning: unknown key; did you mean opening?"),
    ],
)
def test_a_wrong_profile_is_named(profile, problem):
    found = problems(text(**profile))
    assert len(found) == 1
    assert problem in found[0]
