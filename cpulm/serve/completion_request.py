"""The body of a request for text: what may stand in it, and what is said of what may not."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cpulm.data.records.chat import Message, messages_in
from cpulm.data.records.values import RowError

MOST_TOKENS, MOST_TEXTS = 16_384, 16
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
}
"""Parameters of OpenAI's that this server does not have, and the values at which they change nothing."""


class RequestError(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    """What a stream has beside the text."""

    include_usage: bool = False


class JsonSchema(_Body):
    """A schema that the text is to obey; ``strict`` is always so."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """The form of the text."""

    type: Literal["text", "json_schema"]
    json_schema: JsonSchema | None = None


class TextRequest(_Body):
    """What every request for text has, by OpenAI's names; ``top_k``, ``min_p`` and others are ours.

    The defaults are those of ``cpulm generate``.
    """

    model: str | None = None
    max_tokens: int | None = Field(256, ge=0, le=MOST_TOKENS)
    temperature: float | None = 0.8
    top_k: int | None = Field(50, ge=0)
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = 1.0
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    n: int | None = Field(1, ge=1, le=MOST_TEXTS)
    stop: str | list[str] | None = Field(None, max_length=1 << 10)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    @property
    def most_tokens(self) -> int:
        """The most tokens of a text."""
        return MOST_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many of the likeliest tokens are named beside each written one; None: nothing is."""
        return None

    @property
    def stops(self) -> list[str]:
        """The strings before which a text ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the text obeys, if there is one."""
        given = self.response_format and self.response_format.json_schema
        return json.dumps(given.schema_) if given else None


class CompletionRequest(TextRequest):
    """A request for text that continues a prompt."""

    prompt: str | list[int] | list[str] | list[list[int]] = ""
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def scores(self) -> int | None:
        """See :class:`TextRequest`."""
        return self.logprobs

    @property
    def one_prompt(self) -> str | list[int]:
        """The prompt, as text or as tokens."""
        prompt: Any = self.prompt
        of_prompts = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        only: str | list[int] = prompt[0] if of_prompts else prompt
        return only


class ChatRequest(TextRequest):
    """A request for the answer of a conversation."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most_tokens(self) -> int:
        """The most tokens of an answer, by the newer name of the two."""
        return self.max_completion_tokens or super().most_tokens

    @property
    def scores(self) -> int | None:
        """See :class:`TextRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def talk(self) -> list[Message]:
        """The conversation.

        Raises:
            RequestError: names the first message that cannot be used.
        """
        try:
            return messages_in(self.messages)
        except RowError as error:
            raise RequestError(f"messages: {error}"[:250], param="messages") from error


_Request = TypeVar("_Request", bound=TextRequest)


def read_request(content: bytes, kind: type[_Request]) -> _Request:
    """Read the body of a request.

    Raises:
        RequestError: names the parameter that is wrong.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON") from error
    if not isinstance(values, dict):
        raise RequestError("the body is not a JSON object")
    for name, neutral in _WITHOUT_EFFECT.items():
        if (value := values.pop(name, None)) is not None and value not in neutral:
            raise RequestError(f"{name} is not available here; leave it out", param=name)
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    given = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    try:
        request = kind.model_validate(given)
    except ValidationError as error:
        raise _explained(error) from error
    prompt = request.prompt if isinstance(request, CompletionRequest) else ""
    if isinstance(prompt, list) and len(prompt) != 1 and not all(isinstance(one, int) for one in prompt):
        raise RequestError("one prompt a request; n gives several texts of it", param="prompt")
    if request.response_format and request.response_format.type == "json_schema" and not request.schema_text:
        raise RequestError("json_schema is missing", param="response_format")
    return request


def _explained(error: ValidationError) -> RequestError:
    first = error.errors(include_input=False, include_url=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return RequestError(f"there is no parameter {param!r}"[:200], param=param)
    return RequestError(f"{param}: {first['msg']}", param=param)
