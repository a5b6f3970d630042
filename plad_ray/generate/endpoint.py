"""One OpenAI-compatible endpoint: a request goes out within the rate limits, is tried again while that can help, and comes
back as a reply or as a failure in one line. Nothing here raises for what a server does, and nothing it says holds the key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from plad_ray.config import Api, ApiRuntime, Generate
from plad_ray.errors import PladError

logger = logging.getLogger(__name__)
#: seconds before the first further try; doubled for each, up to the second number
BACKOFF = (1.0, 60.0)
#: statuses that another try may change, beside every 5xx
RETRIED = (408, 409, 429)
#: statuses that no other request of the stage can escape: key, payment, permission, wrong address or model
FATAL = (401, 402, 403, 404)
#: assumed before an answer says what it was
CHARS_A_TOKEN = 4


@dataclass(frozen=True)
class Reply:
    """What the model said. ``finish_reason`` is stop or length; counts are those of ``usage``, 0 where there is none."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Failure:
    """Why there is no reply. ``retry``: another try may help; ``fatal``: no request will succeed. ``wait``: Retry-After in
    seconds. Tokens were paid for where the endpoint answered, but not with text."""

    message: str
    retry: bool = False
    fatal: bool = False
    wait: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0


def read_key(variable: str | None) -> str:
    """The key from the environment of this process, or "" when none is to be sent. Raises PladError, naming the variable."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PladError(
            f"the environment variable {variable} with the endpoint's key is not set; export it before Ray starts (on a "
            "cluster on every node), or set runtime.<role>.api.api_key_env to another name, or to null for an endpoint "
            "without keys"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise PladError(f"the environment variable {variable} holds characters that no key has; set it again")
    return key


class Bucket:
    """Token bucket. Takers reserve at once and are told how long to wait, so they come in order; one second's worth may be
    taken at once, so that no minute sees much more than ``per_minute``."""

    def __init__(self, per_minute: float | None):
        self.rate = None if per_minute is None else per_minute / 60
        self.capacity = max(1.0, self.rate or 0.0)
        self.level, self.at = self.capacity, time.monotonic()

    def reserve(self, amount: float) -> float:
        """Seconds until ``amount`` is there."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate) - amount
        self.at = now
        return max(0.0, -self.level / self.rate)

    def give_back(self, amount: float) -> None:
        """Correct an estimate; a negative amount takes more."""
        if self.rate is not None:
            self.level += amount


class Endpoint:
    """Made inside the event loop that uses it."""

    def __init__(self, model: Api, runtime: ApiRuntime, generate: Generate):
        self.model, self.runtime, self.generate = model, runtime, generate
        self.key = read_key(runtime.api_key_env)
        self.host = urlsplit(model.base_url).netloc
        self.client = openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=model.base_url,
            max_retries=0,
            timeout=runtime.timeout,
            # a redirect would carry the key to wherever the answer points
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self.slots = asyncio.Semaphore(runtime.concurrency)
        self.requests, self.tokens = Bucket(runtime.requests_per_minute), Bucket(runtime.tokens_per_minute)
        self.held_until = 0.0
        self.refusal: Failure | None = None
        self.refused = asyncio.Event()

    async def ask(self, request: Mapping[str, Any]) -> Reply | Failure:
        """Answer a REQUEST row. After a fatal failure every other request fails with it, unsent."""
        body, estimate = self._body(request), self._estimate(request)
        async with self.slots:
            attempt, outcome = 0, await self._try(body, estimate)
            while isinstance(outcome, Failure) and outcome.retry:
                if attempt == self.runtime.retries:
                    return replace(outcome, message=f"{outcome.message} ({attempt + 1} tries)")
                logger.info("%s; it is asked again", outcome.message, extra={"rid": request.get("rid")})
                await self._back_off(outcome, attempt)
                attempt, outcome = attempt + 1, await self._try(body, estimate)
            return outcome

    async def _try(self, body: dict[str, Any], estimate: int) -> Reply | Failure:
        await self._admit(estimate)
        if self.refusal is not None:
            return self.refusal
        outcome = await self._send(body)
        self.tokens.give_back(estimate - outcome.prompt_tokens - outcome.generated_tokens)
        if isinstance(outcome, Failure) and outcome.fatal:
            self.refusal = outcome
            self.refused.set()
        return outcome

    async def _back_off(self, failure: Failure, attempt: int) -> None:
        if failure.wait is not None:  # meant for all: the limit is the account's
            self.held_until = max(self.held_until, time.monotonic() + failure.wait)
        else:
            await self._sleep(min(BACKOFF[1], BACKOFF[0] * 2**attempt) * random.uniform(0.5, 1.0))

    async def _admit(self, tokens: int) -> None:
        """Wait until the rate limits and a Retry-After allow one more request."""
        await self._sleep(max(self.requests.reserve(1), self.tokens.reserve(tokens)))
        while self.refusal is None and (left := self.held_until - time.monotonic()) > 0:
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, unless a fatal failure makes waiting pointless."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self.refused.wait(), seconds)
            except TimeoutError:
                return

    def _body(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the client. top_p 1 is the protocol's default, and some endpoints refuse it beside a
        temperature. Reasoning may hold a stop string, so then those are looked for afterwards only."""
        model, settings = self.model, self.generate
        body: dict[str, Any] = {
            "model": model.name,
            "temperature": request["temperature"],
            "extra_body": {model.max_tokens_field: settings.max_tokens, **model.extra_body},
        }
        if model.endpoint == "chat":
            body["messages"] = request["prompt_messages"]
        else:
            body["prompt"] = request["prompt_text"]
        if model.send_seed:
            body["seed"] = request["seed"]
        if settings.top_p < 1 and request["temperature"] > 0:
            body["top_p"] = settings.top_p
        if settings.stop and settings.strip_reasoning is None:
            body["stop"] = list(settings.stop)
        return body

    def _estimate(self, request: Mapping[str, Any]) -> int:
        """Tokens that a request may take, for the limit; the answer's usage corrects it."""
        if request["prompt_messages"] is not None:
            chars = sum(len(message["content"]) for message in request["prompt_messages"])
        else:
            chars = len(request["prompt_text"])
        return chars // CHARS_A_TOKEN + self.generate.max_tokens

    async def _send(self, body: dict[str, Any]) -> Reply | Failure:
        resource: Any = self.client.chat.completions if self.model.endpoint == "chat" else self.client.completions
        headers = {} if self.key else {"Authorization": openai.Omit()}
        try:
            raw = await resource.with_raw_response.create(**body, extra_headers=headers)
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APITimeoutError:
            return Failure(f"{self.host}: no answer within {self.runtime.timeout:g} s", retry=True)
        except openai.APIConnectionError as error:
            return Failure(f"{self.host}: {self._clean(error.__cause__ or error)}", retry=True)
        return self._read(raw.text)

    def _status(self, error: openai.APIStatusError) -> Failure:
        """What an HTTP status other than 2xx means."""
        status, headers = error.status_code, error.response.headers
        said = f"{self.host} answered {status}: {self._clean(error.message)}"
        if 300 <= status < 400:
            target = "/".join(headers.get("location", "nowhere").split("/")[:3])  # without path and query
            return Failure(
                f"{self.host} redirects ({status}) to {target}, where the key is not sent; give the final address as "
                "model.api.base_url",
                fatal=True,
            )
        if status in FATAL or error.code == "insufficient_quota":
            where = f"the key in {self.runtime.api_key_env}" if status in (401, 403) else "model.api and the account"
            return Failure(f"{said}; check {where}", fatal=True)
        wait = retry_after(headers)
        if wait is not None and wait > self.runtime.max_retry_after:
            return Failure(
                f"{said}; it asks to wait {wait:.0f} s, above max_retry_after: run again after that", fatal=True
            )
        return Failure(said, retry=status in RETRIED or status >= 500, wait=wait)

    def _read(self, text: str) -> Reply | Failure:
        """The body of a 200."""
        try:
            answer = json.loads(text)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            said = choice["message"] if self.model.endpoint == "chat" else choice
            content = said["content" if self.model.endpoint == "chat" else "text"]
            reason = choice["finish_reason"]
            tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            reasoning = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return Failure(
                f"{self.host}: the answer is not what the protocol says ({type(error).__name__}): {self._clean(text)}",
                retry=True,
            )
        if content is None and reason == "length":  # all of it went into reasoning
            content = ""
        if reason not in ("stop", "length") or not isinstance(content, str):
            refusal = said.get("refusal") or f"finish_reason {reason}"
            message = f"{self.host}: no text, {self._clean(refusal)}"
            return Failure(message, prompt_tokens=tokens[0], generated_tokens=tokens[1])
        return Reply(content, reason, *tokens, reasoning)

    def _clean(self, said: object) -> str:
        """One short line without the key."""
        text = " ".join(str(said).split())
        if self.key:
            text = text.replace(self.key, "(key)")
        return text[:300] or type(said).__name__


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as seconds or as an HTTP date; None when it is absent or unreadable."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
