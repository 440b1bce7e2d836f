"""`run.py memory explain`: the verdicts on saved requests, without a gateway."""

import json
from typing import Any

from gateway.cli import main


def body(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"model": "bot", "messages": [{"role": "system", "content": "Be brief."}, *turns]}


def test_each_request_gets_its_verdict(tmp_path, capsys):
    first = body("one")
    second = body("one", "An answer.", "<attached_files>x</attached_files> two")
    again = second
    names = []
    for number, request in enumerate((first, second, again)):
        names.append(str(tmp_path / f"{number}.json"))
        (tmp_path / f"{number}.json").write_text(json.dumps(request))
    assert main(["memory", "explain", *names]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    verdicts = [line for line in lines if "depth=" in line]
    assert verdicts == ["new; depth=0", "continue; depth=1", "branch; depth=1"]
    assert "compared  user: one" in lines
    assert "answer: ananswer" in lines
    assert "left out  role system: Be brief." in lines
    assert "question  two" in lines


def test_what_is_no_request_is_said(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"query": "hi"}')
    assert main(["memory", "explain", str(tmp_path / "a.json")]) == 1
    assert "POST /v1/chat/completions" in capsys.readouterr().err
