"""The kinds of background calls, and one recognised call."""

from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "title", "tags", "follow_ups", "queries", "image_prompt", "autocomplete", "emoji", "language",
    "merge", "summary", "rewrite", "translation", "probe",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)


class Task(NamedTuple):
    """A background call. `key` is the only member of the JSON object that the client reads, or ""
    if it reads bare text. `first` and `last` are the user's first and last turn in the conversation
    that the call is about, cut at some thousand characters, and "" if unknown."""

    kind: Kind
    key: str = ""
    first: str = ""
    last: str = ""
