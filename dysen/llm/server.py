"""`llm=openai`: any server that speaks the chat completions of OpenAI, asked many questions at a time.

Whatever the server does, each question ends in an answer or in `Answer.error`, in bounded time: every try has a time limit,
tries are counted, waiting is bounded, and a server that fails again and again is not asked any further in that call.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.names import shorten
from dysen.replies import response_format
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request

FORMATS = ("json_schema", "json_object", "none")  # from the strictest
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
MAX_REPLY = 4_000_000  # bytes
FIRST_WAIT = 0.5  # seconds, doubled with each try


class Refused(Exception):
    """The server understood and said no. `may_be_format`: perhaps only to the form of the answer that was asked for."""

    def __init__(self, reason: str, *, may_be_format: bool = False, ends_all: bool = False):
        super().__init__(reason)
        self.may_be_format, self.ends_all = may_be_format, ends_all


class Changed(Exception):
    """The server wants the same said differently; now it will be."""


class Failed(Exception):
    """Another try may succeed. `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, *, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class OpenAIModel(LanguageModel):
    """Asks a server. What it did, besides its answers, is in `report()`.

    Args:
        base_url: up to /v1.
        model: as the server calls it.
        api_key_env: the environment variable that holds the key; null sends none.
        max_tokens: of an answer.
        temperature: null leaves it to the server.
        seed: sent where it is not null; servers promise little about it.
        format: how answers are bound to the reply's json schema, where the server refuses less and less strictly.
        concurrency: questions under way at a time.
        timeout: seconds for one try.
        retries: further tries of a question.
        max_wait: seconds between two tries; a server that asks for more is given up.
        token_budget: tokens of prompts and answers after which nothing more is asked; null for no end.
        price_prompt, price_answer: for a thousand tokens; null where it costs nothing or nobody knows.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        max_tokens: PositiveInt,
        temperature: NonNegativeFloat | None,
        seed: NonNegativeInt | None,
        format: Literal["json_schema", "json_object", "none"],
        concurrency: PositiveInt,
        timeout: PositiveFloat,
        retries: NonNegativeInt,
        max_wait: PositiveFloat,
        token_budget: PositiveInt | None,
        price_prompt: NonNegativeFloat | None,
        price_answer: NonNegativeFloat | None,
    ):
        try:
            import httpx
        except ImportError:
            raise ConfigError("llm=openai needs httpx", key="llm", remedy="pip install -e .[llm]") from None
        self._httpx = httpx
        self.base_url, self.model = _checked_url(base_url), model
        self._key = _key(api_key_env)
        self.api_key_env = api_key_env
        self.max_tokens, self.temperature, self.seed, self.format = max_tokens, temperature, seed, format
        self.concurrency, self.timeout, self.retries, self.max_wait = concurrency, timeout, retries, max_wait
        self.token_budget, self.price_prompt, self.price_answer = token_budget, price_prompt, price_answer
        self._format_in_use, self._limit_name = FORMATS.index(format), "max_tokens"
        self._tally: collections.Counter[str] = collections.Counter()
        self._spent = self._reserved = 0
        self._tokens_per_character = 0.25  # the most that was seen, later
        self._not_before = 0.0  # all tries wait while the server wants to be left alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._owner = 0

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        future = asyncio.run_coroutine_threadsafe(self._answer_all(questions), self._running_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C ends the requests that are under way
            raise

    def fingerprint(self) -> dict[str, Any]:
        """The server belongs to it, since many call their model "default". The key does not."""
        return {
            "server": self.base_url,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "format": self.format,
        }

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        if self.price_prompt is None and self.price_answer is None:
            return None
        return (prompt_tokens * (self.price_prompt or 0.0) + answer_tokens * (self.price_answer or 0.0)) / 1000

    def report(self) -> dict[str, Any]:
        """Counts of this object's life: requests, tries again by their reason, tokens, money, the format in use."""
        tokens = {name: self._tally[name] for name in ("prompt_tokens", "answer_tokens")}
        counts = {name: count for name, count in sorted(self._tally.items()) if name not in tokens}
        return {**counts, **tokens, "cost": self.cost(**tokens), "format": FORMATS[self._format_in_use]}

    def close(self) -> None:
        if self._loop is not None and self._owner == os.getpid():
            loop, client = self._loop, self._client
            if client is not None:
                asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)
        self._loop = self._client = None

    # ---- one call ---------------------------------------------------------------------------------------------------

    async def _answer_all(self, questions: Sequence[Question]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(questions)
        waiting = iter(range(len(questions)))
        budget = asyncio.Condition()
        failures_in_row = 0
        given_up: str | None = None

        async def work() -> None:
            nonlocal failures_in_row, given_up
            for i in waiting:
                if given_up is not None:
                    answers[i] = Answer("", error=given_up)
                    continue
                try:
                    answers[i] = await self._within_budget(questions[i], budget)
                    failures_in_row = 0
                except Refused as refusal:
                    answers[i] = Answer("", error=str(refusal))
                    if refusal.ends_all:
                        given_up = str(refusal)
                except Failed as failure:
                    answers[i] = Answer("", error=str(failure))
                    failures_in_row += 1
                    if failures_in_row >= max(self.concurrency, 4):
                        given_up = f"not asked: the server failed {failures_in_row} questions in a row ({failure})"

        await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(questions)))))
        if given_up is not None:
            log.warning("the language model was given up: %s", given_up)
        return answers

    async def _within_budget(self, question: Question, changed: asyncio.Condition) -> Answer:
        if self.token_budget is None:
            return await self._ask(question)
        wanted = round(len(question.prompt) * self._tokens_per_character) + self.max_tokens
        async with changed:
            while self._spent + self._reserved + wanted > self.token_budget:
                if not self._reserved:
                    reason = f"not asked: {self._spent} of llm.token_budget={self.token_budget} tokens are spent"
                    raise Refused(f"{reason}, and this question may take {wanted}")
                await changed.wait()
            self._reserved += wanted
        try:
            return await self._ask(question)
        finally:
            async with changed:
                self._reserved -= wanted
                changed.notify_all()

    async def _ask(self, question: Question) -> Answer:
        """Tries until there is an answer, a refusal, or no try left."""
        level = self._format_in_use
        attempt = 0
        first_refusal: Refused | None = None
        while True:
            await self._wait_for_turn()
            try:
                answer = await self._try(question, level)
            except Changed:
                continue
            except Refused as refusal:
                first_refusal = first_refusal or refusal
                if not refusal.may_be_format or level + 1 == len(FORMATS):
                    raise first_refusal from None
                level += 1
                continue
            except Failed as failure:
                wait = self._pause(attempt, failure.wait)
                self._tally[f"failed: {str(failure).partition(':')[0]}"] += 1
                if (failure.wait or 0) > self.max_wait:
                    raise Failed(f"{failure}; it asks for {failure.wait:.0f} s, llm.max_wait is less") from None
                if attempt == self.retries:
                    raise Failed(f"{failure} (tried {attempt + 1} times)") from None
                attempt += 1
                await asyncio.sleep(wait)
                continue
            if level > self._format_in_use:
                was, self._format_in_use = FORMATS[self._format_in_use], level
                self._tally[f"format {was} was refused"] += 1
                log.warning("the server refuses response_format %s (%s); going on with %s",
                            was, first_refusal, FORMATS[level])  # fmt: skip
            return answer

    def _pause(self, attempt: int, asked_for: float | None) -> float:
        """Seconds until the next try, never the same for two that failed together."""
        grown = min(FIRST_WAIT * 2**attempt, self.max_wait)
        if asked_for is None or asked_for > self.max_wait:
            return grown * random.uniform(0.5, 1.0)
        self._not_before = max(self._not_before, time.monotonic() + asked_for)
        return asked_for + grown * random.uniform(0.0, 0.5)

    async def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left * random.uniform(1.0, 1.1))

    async def _try(self, question: Question, level: int) -> Answer:
        httpx = self._httpx
        self._tally["requests"] += 1
        body = self._request(question, level)
        try:
            async with asyncio.timeout(self.timeout):
                status, headers, content = await self._post(body)
        except (TimeoutError, httpx.TimeoutException):
            raise Failed(f"no answer within {self.timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Failed(f"no connection: {type(error).__name__} {error}".strip()) from None
        text = self._public(content.decode("utf-8", "replace"))
        if status in TRY_AGAIN:
            raise Failed(f"status {status}: {shorten(text)}", wait=_retry_after(headers))
        if status != 200:
            self._refuse(status, text, body)
        return self._read(text, question)

    async def _post(self, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.base_url}/chat/completions"
        async with self._client.stream("POST", url, content=json.dumps(body), headers=headers) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_REPLY:
                    raise Failed(f"an answer of more than {MAX_REPLY} bytes")
            return response.status_code, response.headers, bytes(content)

    def _request(self, question: Question, level: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": question.prompt}]}
        body[self._limit_name] = self.max_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.seed is not None:
            body["seed"] = self.seed
        if FORMATS[level] == "json_schema":
            body["response_format"] = response_format(question.reply)
        elif FORMATS[level] == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _refuse(self, status: int, text: str, body: dict[str, Any]) -> NoReturn:
        said = f"status {status}: {shorten(text)}"
        if status in (401, 403):
            where = f"the key in ${self.api_key_env}" if self.api_key_env else "a request without a key"
            raise Refused(f"the server refused {where}; {said}", ends_all=True)
        if status == 404:
            raise Refused(f"the server knows no {self.base_url}/chat/completions with model {self.model}; {said}",
                          ends_all=True)  # fmt: skip
        if status == 400 and "max_tokens" in body and "max_completion_tokens" in text:
            self._limit_name = "max_completion_tokens"  # what newer models of OpenAI call it
            raise Changed
        raise Refused(said, may_be_format=status in (400, 415, 422, 501))

    def _read(self, text: str, question: Question) -> Answer:
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise Failed(f"not json: {shorten(text)}") from None
        usage = reply.get("usage") if isinstance(reply, dict) else None
        choices = reply.get("choices") if isinstance(reply, dict) else None
        message = None
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            message = choices[0].get("message")
        content = message.get("content") if isinstance(message, dict) else None
        content = content if isinstance(content, str) else ""
        prompt_tokens = _count(usage, "prompt_tokens", len(question.prompt) // 4)
        answer_tokens = _count(usage, "completion_tokens", len(content) // 4)
        self._tally.update(prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
        self._spent += prompt_tokens + answer_tokens
        ratio = prompt_tokens / max(len(question.prompt), 1)
        self._tokens_per_character = max(self._tokens_per_character, ratio)
        if isinstance(message, dict) and isinstance(message.get("refusal"), str):
            raise Refused(f"the model refused: {shorten(message['refusal'])}")
        if not content.strip():
            raise Failed(f"an answer without text: {shorten(text)}")
        return Answer(content, prompt_tokens, answer_tokens)

    def _public(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    # ---- the thread that talks --------------------------------------------------------------------------------------

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, so that connections outlive a call and notebooks, which run one, can call as well."""
        if self._loop is None or self._owner != os.getpid():  # threads do not survive a fork
            self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="llm").start()
            limits = self._httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
            self._client = self._httpx.AsyncClient(timeout=self.timeout, limits=limits)
        return self._loop


def _count(usage: object, name: str, otherwise: int) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else otherwise


def _retry_after(headers: Any) -> float | None:
    """Seconds, from a number or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _checked_url(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ConfigError("not the address of a server", key="llm.base_url", got=base_url.rpartition("@")[2],
                          allowed="http(s)://host[:port]/v1")  # fmt: skip
    if parts.username or parts.password or parts.query:
        remedy = "a key comes from the environment variable that llm.api_key_env names"
        raise ConfigError("an address with a key in it would be written into runs", key="llm.base_url", remedy=remedy)
    return base_url.rstrip("/")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        remedy = f"export {variable}=<your key>, or llm.api_key_env=null for a server that wants none"
        raise ConfigError("there is no key for the server", key="llm.api_key_env", got=f"${variable} is not set",
                          remedy=remedy)  # fmt: skip
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("a key cannot hold these characters", key="llm.api_key_env", got=f"what is in ${variable}")
    return key
