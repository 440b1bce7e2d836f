"""The answers of a demo bot: in the language of the question, and labelled as a demo.

Markers in the last question control it: `#think` (or 思考) gives reasoning, `#fail` an error before
the first piece, `#break` an error after some, `#cut` a connection that ends early, `#slow` a long
silence, `#limit` a rate limit, `#long` a long answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

_ZH = re.compile(r"[\u4e00-\u9fff]")
_JA = re.compile(r"[\u3040-\u30ff]")
_THINK = re.compile(r"#think|思考|想一想|推理|\bthink\b|\breason", re.IGNORECASE)
_LABEL = re.compile(r"(?:^|\n\n)User: ")
_FAULTS = ("fail", "break", "cut", "slow", "limit")

_ENV = {
    "Dify": "DIFY_BASE_URL, DIFY_API_KEY",
    "FastGPT": "FASTGPT_BASE_URL, FASTGPT_API_KEY",
    "Coze": "COZE_BASE_URL, COZE_API_TOKEN, COZE_BOT_ID",
    "Zhipu": "ZHIPU_BASE_URL, ZHIPU_API_KEY",
    "OpenAI": "OPENAI_BASE_URL, OPENAI_API_KEY",
}


def _variables(platform: str) -> str:
    """What makes this bot a real one."""
    name = platform.upper()
    return _ENV.get(platform, f"{name}_BASE_URL, {name}_API_KEY")


@dataclass(frozen=True)
class Speech:
    """Pieces as a model would stream them, and the requested fault, if any."""

    pieces: list[str]
    reasoning: list[str] = field(default_factory=list)
    fault: str = ""
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def thought(self) -> str:
        return "".join(self.reasoning)

    @property
    def completion_tokens(self) -> int:
        return len(self.pieces) + len(self.reasoning)


def speak(platform: str, question: str, earlier: list[str], files: Sequence[str] = ()) -> Speech:
    """The answer to `question` in a conversation whose previous questions are `earlier`.

    `files` are the names of the files attached to the question.
    """
    last = last_question(question)
    asked = " ".join(last.split())
    language = "ja" if _JA.search(asked) else "zh" if _ZH.search(asked) else "en"
    before = last_question(earlier[-1])[:100] if earlier else ""
    names = [" ".join(name.split())[:100] for name in files]
    text = _ANSWERS[language](platform, asked[:200], before, names)
    if "#long" in last:
        text = f"{text}\n" * 20
    thought = _THOUGHTS[language] if _THINK.search(last) else ""
    fault = next((fault for fault in _FAULTS if f"#{fault}" in last), "")
    prompt_tokens = len(_pieces(question)) + sum(len(_pieces(q)) for q in earlier) + 8
    return Speech(_pieces(text), _pieces(thought), fault, prompt_tokens)


def last_question(text: str) -> str:
    """The last question. Platforms without turns get earlier ones in the text, with labels."""
    return _LABEL.split(text)[-1]


def _chinese(platform: str, asked: str, before: str, files: list[str]) -> str:
    memory = f"你上一个问题是“{before}”。" if before else ""
    seen = f"我收到了 {len(files)} 个文件：{'、'.join(files)}。" if files else ""
    return (
        f"你好！我是 {platform} 的演示机器人（demo）🤖。你问的是：“{asked}”。{memory}{seen}"
        f"我不是真正的 {platform}，只会照着它的协议说话：AI Gateway 把 FastGPT、Dify、Coze、智谱和"
        " OpenAI 兼容的服务放在同一个接口后面，流式输出逐字到达。\n"
        f"要换成你自己的机器人，请把 {_variables(platform)} 写进 config.yaml 旁边的 .env，"
        "无需重启。"
    )


def _english(platform: str, asked: str, before: str, files: list[str]) -> str:
    memory = f' Your previous question was "{before}".' if before else ""
    seen = f" I received {len(files)} file(s): {', '.join(files)}." if files else ""
    return (
        f'Hello! I am a demo of {platform} 🤖. You asked: "{asked}".{memory}{seen}'
        f" I am not the real {platform}, I only speak its protocol: AI Gateway puts FastGPT, Dify,"
        " Coze, Zhipu and OpenAI-compatible services behind one API, streamed word by word.\n"
        f"To talk to your own bot, put {_variables(platform)} into .env next to config.yaml."
    )


def _japanese(platform: str, asked: str, before: str, files: list[str]) -> str:
    memory = f"前の質問は「{before}」でした。" if before else ""
    seen = f"ファイルを {len(files)} 件受け取りました：{'、'.join(files)}。" if files else ""
    return (
        f"こんにちは！{platform} のデモ（demo）ボットです🤖。ご質問は「{asked}」ですね。"
        f"{memory}{seen}"
        f"本物の {platform} ではなく、そのプロトコルで話すだけです。"
        f"\n実際のボットを使うには config.yaml と同じ場所の .env に"
        f" {_variables(platform)} を書いてください。"
    )


_ANSWERS = {"zh": _chinese, "en": _english, "ja": _japanese}
_THOUGHTS = {
    "zh": "用户想看思考过程 🤔。这是演示，所以我只说明自己是演示，再重复问题。",
    "en": "The user wants to see me think 🤔. I am a demo, so I say that and repeat the question.",
    "ja": "ユーザーは考える過程を見たい🤔。デモなので、そう伝えて質問を繰り返す。",
}


def file_name(url: str) -> str:
    """A name for a file given by URL: its last path segment, or a description of a `data:` URL."""
    if url.startswith("data:"):
        head, _, content = url[5:].partition(",")
        mime, _, options = head.partition(";")
        if options.endswith("base64"):
            return data_name(mime, content)
        return _named_by_size(mime, len(unquote_to_bytes(content)))
    path = url.partition("?")[0].partition("#")[0].rstrip("/")
    return unquote(path.rpartition("/")[2])


def data_name(mime: str, base64: str) -> str:
    """A name for a file given by its bytes."""
    return _named_by_size(mime, len(base64.rstrip("=")) * 3 // 4)


def _named_by_size(mime: str, size: int) -> str:
    return f"{mime or 'text/plain'} ({size} bytes)"


def _pieces(text: str) -> list[str]:
    """Text cut like a model's tokens: a word with its space, or two Chinese characters."""
    return re.findall(r"[\u3040-\u9fff]{1,2}|[^\s\u3040-\u9fff]+\s*|\s+", text)
