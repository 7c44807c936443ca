"""Ask a language model which of two answers is better, and read the verdict from its reply.

Any server with OpenAI's POST /v1/chat/completions will do: vLLM, llama.cpp, Ollama, a hosted one.
The key goes into one header, and nowhere else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ValidationError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from library.errors import InputError
from library.records import Message

TRIES = 6
BACKOFF_SECONDS = 1.0  # doubled with each further try
LONGEST_WAIT_SECONDS = 120  # whatever Retry-After asks for
TEMPORARY = (429, 500, 502, 503, 504)
SHOWN_CHARACTERS = 300
TEMPERATURE = 0.0
LOCAL = ("localhost", "127.0.0.1", "::1")

INSTRUCTIONS = """\
You compare two answers to a question about a text. The better answer is the one that is right \
and that the passages of the text support. Its length, its style and its place do not matter. \
Where both are as good or as bad, it is a tie.
Give your reason in one sentence. Then end with your verdict alone on a line, in double square \
brackets: the letter of the better answer, or the word tie."""

_VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE)
_BARE = re.compile(r"[\W_]*(A|B|tie)[\W_]*", re.IGNORECASE)


def build_request(question: str, passages: Sequence[str], first: str, second: str) -> list[Message]:
    """The messages that show a judge what people see: question, passages, and two answers as A and
    B, without the reference or a system's name.
    """
    parts = {
        "passages": "\n\n[…]\n\n".join(passages) or "(none: the question alone was asked)",
        "question": question,
        "answer A": first or "(empty)",
        "answer B": second or "(empty)",
    }
    shown = "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items())
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": f"{shown}\n\nWhich answer is better: A, B, or tie?"},
    ]


def read_verdict(reply: str) -> Literal["A", "B", "tie", "unclear"]:
    """The verdict of a reply: the one in double brackets, or the only word. Thinking is ignored.

    "unclear" if there is none or more than one, or if the thinking never ended.
    """
    said = reply.rpartition("</think>")[2]
    if "<think>" in said:
        return "unclear"
    found = {word.lower() for word in _VERDICT.findall(said)}
    if not found and (bare := _BARE.fullmatch(said)):
        found = {bare[1].lower()}
    verdicts: dict[str, Literal["A", "B", "tie"]] = {"a": "A", "b": "B", "tie": "tie"}
    return verdicts[found.pop()] if len(found) == 1 else "unclear"


class _Told(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Told


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True)
class Reply:
    """A judge's reply, and the server's count of tokens, None if it gives none."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Judge:
    """A model on an OpenAI-compatible server; `base_url` ends in /v1.

    Raises InputError if the address is invalid or may hold a key, or if the key is invalid. The
    message shows neither.
    """

    def __init__(
        self, base_url: str, model: str, key: str | None, max_tokens: int, timeout: float
    ) -> None:
        expected = (
            "OPENAI_BASE_URL or --base-url: expected an address such as http://localhost:8000/v1"
        )
        try:
            parts = urlsplit(base_url)
            _ = parts.port
        except ValueError as error:
            raise InputError(expected) from error
        key = key.strip() if key else None  # key files end in a line break
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(
                "OPENAI_API_KEY holds a character that no key has; set it again (it is not shown "
                "here)"
            )
        if "@" in parts.netloc:
            raise InputError(
                "the base URL holds a name or password before an @; put the key into OPENAI_API_KEY"
            )
        if "?" in base_url or "#" in base_url:
            raise InputError(
                "the base URL holds a ? or #; end it with /v1, and put a key into OPENAI_API_KEY"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(expected)
        self.model, self.host = model, parts.netloc
        self.is_private = parts.scheme == "https" or parts.hostname in LOCAL
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key, self._max_tokens, self._timeout = key, max_tokens, timeout
        self._session = requests.Session()
        self._session.auth = self._sign  # else requests would take credentials from .netrc
        retry = Retry(
            total=TRIES - 1,
            connect=0,  # report a server that is down at once
            read=False,  # a reply that never arrived may have been paid for
            status_forcelist=TEMPORARY,
            allowed_methods=None,
            backoff_factor=BACKOFF_SECONDS,
            retry_after_max=LONGEST_WAIT_SECONDS,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def ask(self, messages: Sequence[Message]) -> Reply:
        """The model's reply. Raises InputError if the server is down or refuses."""
        try:
            response = self._session.post(
                self._url,
                json={
                    "model": self.model,
                    "messages": [
                        {"role": message["role"], "content": message["content"]}
                        for message in messages
                    ],
                    "temperature": TEMPERATURE,
                    "max_tokens": self._max_tokens,
                },
                timeout=(10, self._timeout),
                allow_redirects=False,  # the key is for this address alone
            )
        except requests.Timeout as error:
            raise InputError(
                f"{self._url}: no answer within {self._timeout:g} s; try again, or set --timeout"
            ) from error
        except requests.RequestException as error:
            raise InputError(
                f"{self._url}: no answer ({self._hide(_cause(error))}); is the server running? "
                "Start it, or name another with OPENAI_BASE_URL or --base-url"
            ) from error
        if response.status_code != 200:
            raise InputError(f"{self._url}: {self._explain(response)}")
        try:
            completion = _Completion.model_validate_json(response.content)
            text = completion.choices[0].message.content or ""
        except (ValidationError, IndexError) as error:
            raise InputError(
                f"{self._url}: not a chat completion: {self._show(response)}"
            ) from error
        usage = completion.usage
        return Reply(
            self._hide(text),
            usage.prompt_tokens if usage else None,
            usage.completion_tokens if usage else None,
        )

    def _explain(self, response: requests.Response) -> str:
        status = response.status_code
        if 300 <= status < 400:
            target = urlsplit(response.headers.get("Location", "")).netloc
            return f"{status}: it redirects to {target or 'another path'}; name the final address"
        mend = {
            401: "is OPENAI_API_KEY set, and valid?",
            403: "is OPENAI_API_KEY set, and valid?",
            404: f"does the address end in /v1, and does the server have {self.model!r}?",
        }
        hint = mend.get(status, "")
        if status in TEMPORARY:
            hint = f"after {TRIES} tries; all replies so far are saved: run it again later"
        return ": ".join(filter(None, (str(status), self._show(response), hint)))

    def _show(self, response: requests.Response) -> str:
        return self._hide(" ".join(response.text.split()))[:SHOWN_CHARACTERS]

    def _hide(self, text: str) -> str:
        """The text without the key, which some servers repeat."""
        return text.replace(self._key, "***") if self._key else text


def _cause(error: BaseException) -> str:
    """The root cause of a failed connection, in few words."""
    reason = error
    while (inner := getattr(reason, "reason", None) or reason.__cause__ or reason.__context__) and (
        isinstance(inner, BaseException)
    ):
        reason = inner
    return str(getattr(reason, "strerror", None) or type(reason).__name__)
