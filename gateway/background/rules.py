"""The rules that recognise background calls: data, one entry per form that some client sends.

A rule needs several marks of structure, never one term: users write about titles and summaries too.
`docs/background.md` lists the clients.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gateway.background.tasks import Kind

# What the turns of a request look like:
#   lone     one user turn
#   pair     a system turn and a user turn
#   history  a conversation and a further user turn
#   closing  a conversation and a system turn after its last answer
Shape = Literal["lone", "pair", "history", "closing"]

# Where a mark is: in the last turn, in its first or last part, in its first line or two, in the
# first system turn, or in the answer before the last turn.
Place = Literal["head", "tail", "opening", "system", "before"]
Mark = tuple[Place, Callable[[str], Any]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One form of a background call: every condition must hold.

    The last turn has one of `begins` at its start and one of `ends` at its end. One of `terms` is
    in the opening of the turn that states the task, in a `pair` of the system turn: a cheap test,
    before the `marks`. `whole`: the answer is not streamed. `bare`: no sampling options.
    `most_tokens`: the limit of tokens is this or less. `schema`: it asks for JSON with this one
    member. The last turn has at most `longest` characters. `quotes`: it
    quotes a conversation below the instruction. `key` is as in `Task`.
    """

    kind: Kind
    shape: Shape
    marks: tuple[Mark, ...]
    key: str = ""
    begins: tuple[str, ...] = ("",)
    ends: tuple[str, ...] = ("",)
    terms: tuple[str, ...] = ()
    whole: bool = False
    bare: bool = False
    most_tokens: int | None = None
    schema: str = ""
    longest: int | None = None
    quotes: bool = False


def _has(place: Place, *patterns: str) -> tuple[Mark, ...]:
    return tuple((place, re.compile(pattern, re.IGNORECASE).search) for pattern in patterns)


_NUMBER = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|[一二两三四五六七八九十]+)"
_RANGE = rf"{_NUMBER}(?:\s*(?:-|–|~|to|or|到|至)\s*{_NUMBER})?"
_LIMIT = (
    rf"{_RANGE}[\s-]*(?:words?|characters?|letters|tokens?)\b|{_RANGE}\s*个?(?:汉字|字|词|单词)"
)
_TITLE_TERMS = ("title", "Title", "name", "Name", "标题", "主题", "名称", "题目")
_TITLE = r"\b(?:title|name)\b|标题|主题|名称|题目"
_TALK = r"\b(?:conversation|dialogue|dialog|chat|discussion)\b|对话|会话|聊天|这句话"
_ONLY = r"\b(?:only|just|nothing else|no|not|without)\b|仅|只|不要|直接(?:返回|输出)"
_NO_SIGNS = r"punctuation|quotation marks|quotes|标点|引号"
_SUMMARY_TERMS = ("summar", "Summar", "recap", "总结", "摘要", "概括")
_SUMMARY = r"summar|recap|总结|摘要|概括"
# a list of what the answer must not have, as no person writes it
_PROHIBITIONS = r"(?:\b(?:without|no|not)\b|不要)[^.。]{1,60}[,、，][^.。]{1,60}[,、，]"
_SPEAKER = r"(?:user|human|用户)\s*[:：]"
_SPOKEN = rf"\A\s*(?:{_SPEAKER}|\[\s*\{{\s*\"role\"|<(?:chat_?history|conversation)>)"
_SPOKEN_BEGINS = ("user", "User", "USER", "human", "Human", "用户", "[", "<")
_SPEAKERS = rf"\n\s*{_SPEAKER}"
_GREETING = r"\A\s*(?:ping|hi|hello|test)[.!?]?\s*\Z"


def _open_webui(kind: Kind, key: str, end: str = r"</chat_history>\s*\Z") -> Rule:
    """A task of Open WebUI: its questions about files begin with the same line, but have no example
    of the JSON to answer with, are streamed and do not end with the history."""
    example = rf'\{{\s*"{key}"\s*:'
    marks = (*_has("head", example, "<chat_history>"), *_has("tail", end))
    return Rule(kind, "lone", marks, key, begins=("### Task:",), whole=True, bare=True)


RULES: tuple[Rule, ...] = (
    _open_webui("title", "title"),
    _open_webui("tags", "tags"),
    _open_webui("follow_ups", "follow_ups"),
    _open_webui("queries", "queries"),
    _open_webui("image_prompt", "prompt"),
    _open_webui("autocomplete", "text", end=r"</text>\s*(?:#+ Output:)?\s*\Z"),
    Rule(  # Open WebUI
        "emoji",
        "lone",
        _has("opening", "emoji|表情", r"[:：]\s*```"),
        ends=("```", "```\n"),
        terms=("emoji", "Emoji", "表情"),
        whole=True,
        bare=True,
        most_tokens=8,
    ),
    Rule(  # Open WebUI: several models' answers to one question
        "merge",
        "lone",
        (
            # the first paragraph ends with the question in quotation marks
            *_has(
                "opening", r'\A[^\n]*["“「][^\n]+["”」][。.]?\n\n', r"responses|answers|回答|回复"
            ),
            *_has("head", r"synthesi[sz]e|merge|combine|综合|合并"),
            *_has("head", r'\n\n[^\n"]{0,40}(?:models|模型)[^\n"]{0,10}[:：]\s*"""'),
        ),
        ends=('"""', '"""\n'),
        terms=("models", "模型"),
        whole=True,
        bare=True,
    ),
    Rule(  # Open WebUI: a history that has become too long
        "summary",
        "lone",
        (*_has("opening", _SUMMARY, _TALK), *_has("head", rf"<chat_history>|{_SPEAKERS}")),
        terms=_SUMMARY_TERMS,
        whole=True,
        bare=True,
        most_tokens=4000,
    ),
    Rule(  # NextChat
        "title",
        "history",
        _has("opening", _TITLE, _LIMIT, _TALK, _NO_SIGNS, _PROHIBITIONS),
        terms=_TITLE_TERMS,
        whole=True,
        longest=500,
    ),
    Rule(  # NextChat
        "summary",
        "closing",
        _has("opening", _SUMMARY, rf"{_LIMIT}|prompt|context|上下文"),
        terms=_SUMMARY_TERMS,
        longest=1000,
    ),
    Rule(  # clients that ask for JSON by a schema
        "title",
        "pair",
        (*_has("system", _TITLE), *_has("head", _SPOKEN)),
        key="title",
        begins=_SPOKEN_BEGINS,
        terms=_TITLE_TERMS,
        schema="title",
    ),
    Rule(  # LobeChat, Cherry Studio
        "title",
        "pair",
        (*_has("system", _TITLE, _LIMIT, rf"{_TALK}|{_SUMMARY}", _ONLY), *_has("head", _SPOKEN)),
        begins=_SPOKEN_BEGINS,
        terms=_TITLE_TERMS,
    ),
    Rule(  # Obsidian Copilot, LibreChat
        "title",
        "lone",
        _has("opening", _TITLE, _LIMIT, _TALK, _ONLY, _SPEAKERS),
        terms=_TITLE_TERMS,
        quotes=True,
    ),
    Rule(  # Chatbox
        "title",
        "lone",
        (
            *_has("opening", _TITLE, _LIMIT, _ONLY, r"\n```\n"),
            *_has("head", r"\n-{5,}\n"),
            *_has("tail", r"\n```\n"),
        ),
        terms=_TITLE_TERMS,
        quotes=True,
    ),
    Rule(  # LobeChat
        "summary",
        "pair",
        (
            *_has("system", _SUMMARY),
            *_has("head", r"\A\s*<chat_?history>"),
            *_has("tail", _LIMIT),
        ),
        begins=("<",),
        terms=_SUMMARY_TERMS,
    ),
    Rule(  # LobeChat
        "rewrite",
        "pair",
        (
            *_has("system", r"<chat_?history>", r"stand-?alone|rephrase|rewrite|改写|独立"),
            *_has("opening", r"\A\s*(?:follow[ -]?up|追问|后续)[^:：\n]{0,40}[:：]"),
        ),
        begins=("Follow", "follow", "追问", "后续"),
        terms=("rephrase", "Rephrase", "standalone", "rewrite", "Rewrite", "改写", "独立"),
    ),
    Rule(  # LobeChat: examples, then the text in braces
        "language",
        "history",
        (
            *_has("system", "language|语言", "locale"),
            *_has("before", r"\A[a-z]{2,3}(?:-[a-z]{2,4})?\Z"),
        ),
        begins=("{",),
        ends=("}",),
    ),
    Rule("probe", "lone", _has("head", _GREETING), most_tokens=10, longest=8),  # Dify
    Rule(  # Cherry Studio
        "probe", "pair", (*_has("system", r"\A\s*test\s*\Z"), *_has("head", _GREETING)), longest=8
    ),
)
