"""The settings of a Dify app: its `/v1/parameters` and `/v1/site`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILE_TYPES = ("image", "document", "audio", "video")
LIMITS_MB = {"image": 10, "video": 100, "audio": 50, "other": 15}
_METHODS = ["remote_url", "local_file"]
_OFF = {"enabled": False}


@dataclass(frozen=True)
class Settings:
    mode: str
    file_types: list[str]
    file_limit: int
    limits_mb: Mapping[str, int]
    suggests: bool = False
    has_audio: bool = True
    form: tuple[dict[str, Any], ...] = ()  # of the author, in addition to the question's own

    @property
    def is_easy(self) -> bool:
        """Whether the app has a model of its own instead of a graph of nodes."""
        return self.mode in ("chat", "agent-chat", "completion")

    def parameters(self) -> dict[str, Any]:
        moderation = {"configs": [], **_OFF, "type": ""} if self.is_easy else _OFF
        return {
            "opening_statement": "你好，我是演示应用。", "suggested_questions": ["你会什么？"],
            "suggested_questions_after_answer": {"enabled": self.suggests},
            "speech_to_text": {"enabled": self.has_audio},
            "text_to_speech": {"enabled": self.has_audio, "language": "", "voice": ""},
            "retriever_resource": {"enabled": True}, "annotation_reply": _OFF,
            "more_like_this": _OFF, "user_input_form": self.inputs(),
            "sensitive_word_avoidance": moderation, "file_upload": self._file_upload(),
            "system_parameters": self._system_parameters(),
        }  # fmt: skip

    def site(self) -> dict[str, Any]:
        return {
            "title": "演示应用 Demo", "chat_color_theme": None,
            "chat_color_theme_inverted": False, "icon_type": "emoji", "icon": "🤖",
            "icon_background": "#FFEAD5", "description": None, "copyright": None,
            "privacy_policy": None, "input_placeholder": None, "custom_disclaimer": "",
            "default_language": "zh-Hans", "show_workflow_steps": True,
            "use_icon_as_answer_icon": False, "icon_url": None,
        }  # fmt: skip

    def inputs(self) -> list[dict[str, Any]]:
        """The app's input variables."""
        return [*self._own(), *self.form]

    def _own(self) -> list[dict[str, Any]]:
        if self.mode == "completion":
            field = {"default": "", "label": "问题", "required": True, "variable": "query"}
            return [{"paragraph": field}]
        if self.mode != "workflow":
            return []
        query = {
            "label": "问题", "max_length": 200_000, "options": [], "required": True,
            "type": "paragraph", "variable": "query",
        }  # fmt: skip
        file = {
            "allowed_file_extensions": [], "allowed_file_types": self.file_types,
            "allowed_file_upload_methods": _METHODS, "label": "文件", "max_length": 200_000,
            "options": [], "required": False, "type": "file", "variable": "file",
        }  # fmt: skip
        form: list[dict[str, Any]] = [{"paragraph": query}]
        return [*form, {"file": file}] if self.file_types else form

    def _file_upload(self) -> dict[str, Any]:
        enabled, limit = bool(self.file_types), self.file_limit
        image = {
            "detail": "high", "enabled": enabled, "number_limits": limit,
            "transfer_methods": _METHODS,
        }  # fmt: skip
        return {
            "allowed_file_extensions": [], "allowed_file_types": self.file_types,
            "allowed_file_upload_methods": _METHODS, "enabled": enabled,
            **({"image": image} if self.is_easy else {}), "number_limits": limit,
        }  # fmt: skip

    def _system_parameters(self) -> dict[str, int]:
        kinds = ("image", "video", "audio")
        sizes = {f"{kind}_file_size_limit": self.limits_mb[kind] for kind in kinds}
        return {
            **sizes, "file_size_limit": self.limits_mb["other"], "workflow_file_upload_limit": 10,
        }  # fmt: skip
