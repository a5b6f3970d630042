"""One endpoint, against a real server that fails on demand."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from plad_ray.config import Api, ApiRuntime, Generate
from plad_ray.errors import PladError
from plad_ray.generate import endpoint
from plad_ray.generate.endpoint import Bucket, Endpoint, Failure, Reply, read_key, retry_after
from tests.conftest import API_KEY
from tests.generate.api_server import Fault, Server, answer, serving

RUNTIME: dict[str, Any] = {"api_key_env": "PLAD_TEST_API_KEY", "retries": 2, "timeout": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", (0.01, 0.02))


def request(text: str = "a b", temperature: float = 0.7, chat: bool = True) -> dict[str, Any]:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
    prompt = (
        {"prompt_messages": messages, "prompt_text": None} if chat else {"prompt_messages": None, "prompt_text": text}
    )
    return {**prompt, "rid": "p1:teacher:0.7:0", "temperature": temperature, "seed": 7}


def ask(server: Server, *requests: dict[str, Any], model=None, runtime=None, **generate: Any) -> list[Any]:
    """The outcomes of ``requests``, asked at once."""
    api = Api(base_url=server.url, name="m", **(model or {}))
    settings = Generate(**{"max_tokens": 8, **generate})

    async def run() -> list[Any]:
        made = Endpoint(api, ApiRuntime(**{**RUNTIME, **(runtime or {})}), settings)
        return await asyncio.gather(*(made.ask(r) for r in requests))

    return asyncio.run(run())


def test_chat_request():
    with serving() as server:
        [reply] = ask(server, request(), top_p=0.9, stop=("\n",))
    assert reply == Reply("b a", "stop", 10, 2, 0)
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions" and asked.headers["authorization"] == f"Bearer {API_KEY}"
    assert asked.body == {
        "model": "m",
        "messages": request()["prompt_messages"],
        "temperature": 0.7,
        "max_tokens": 8,
        "seed": 7,
        "top_p": 0.9,
        "stop": ["\n"],
    }


def test_completions_request_greedy():
    with serving() as server:
        model = {"endpoint": "completions", "send_seed": False, "extra_body": {"min_tokens": 1}}
        [reply] = ask(server, request(chat=False, temperature=0), model=model, top_p=0.9)
    assert reply.text == "b a" and server.asked[0].path == "/v1/completions"
    expected = {"model": "m", "prompt": "a b", "temperature": 0, "max_tokens": 8, "min_tokens": 1}
    assert server.asked[0].body == expected, "greedy: no top_p"


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_the_other_name_of_max_tokens(kind):
    with serving() as server:
        model = {"endpoint": kind, "max_tokens_field": "max_completion_tokens", "extra_body": {"x": 1}}
        ask(server, request(chat=kind == "chat"), model=model)
    body = server.asked[0].body
    assert (body["max_completion_tokens"], body["x"]) == (8, 1) and "max_tokens" not in body


def test_stop_strings_inside_reasoning_are_not_sent():
    with serving() as server:
        ask(server, request(), stop=("\n",), strip_reasoning=("<think>", "</think>"))
    assert "stop" not in server.asked[0].body


def test_no_key_is_sent_when_none_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    with serving() as server:
        [reply] = ask(server, request(), runtime={"api_key_env": None})
    assert isinstance(reply, Reply) and "authorization" not in server.asked[0].headers


FAULTS = [
    Fault(429, headers={"Retry-After": "0"}),
    Fault(408),
    Fault(409),
    Fault(500),
    Fault(503, body="<html>busy</html>"),
    Fault(0),
    Fault(200, body='{"choices": ['),
    Fault(200, body='{"choices": []}'),
    Fault(200, body="null"),
    Fault(200, seconds=1.5),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.status} {f.body or ''}{f.seconds or ''}")
def test_tried_again(fault, caplog):
    caplog.set_level("INFO", "plad_ray")
    with serving(lambda number, body: fault if number == 0 else None) as server:
        [reply] = ask(server, request(), runtime={"timeout": 0.5 if fault.seconds else 20})
    assert reply == Reply("b a", "stop", 10, 2, 0) and len(server.asked) == 2
    [told] = [record for record in caplog.records if record.name.startswith("plad_ray")]
    assert told.rid == "p1:teacher:0.7:0" and told.getMessage().endswith("; it is asked again")


@pytest.mark.parametrize("fault", FAULTS[1:9], ids=lambda f: f"{f.status} {f.body or ''}")
def test_tries_are_bounded(fault):
    with serving(lambda number, body: fault) as server:
        [failure] = ask(server, request())
    assert isinstance(failure, Failure) and not failure.fatal and len(server.asked) == 3
    assert "(3 tries)" in failure.message and failure.message.startswith("127.0.0.1:")


def test_waits_grow(monkeypatch):
    slept: list[float] = []

    async def sleep(self: Endpoint, seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(endpoint, "BACKOFF", (1.0, 5.0))
    monkeypatch.setattr(Endpoint, "_sleep", sleep)
    with serving(lambda number, body: Fault(500)) as server:
        ask(server, request(), runtime={"retries": 4})
    waits = [seconds for seconds in slept if seconds > 0]
    assert len(waits) == 4 and len(set(waits)) == 4
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, (1, 2, 4, 5), strict=True))


@pytest.mark.parametrize("value", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)], ids=["s", "date"])
def test_retry_after_holds_everybody(value):
    with serving(lambda number, body: Fault(429, headers={"Retry-After": value()}) if number == 0 else None) as server:
        outcomes = ask(server, *[request()] * 4, runtime={"concurrency": 1})
    assert all(isinstance(o, Reply) for o in outcomes)
    assert len(server.asked) == 5 and server.asked[1].at - server.asked[0].at >= 0.95


def test_reading_retry_after():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert [retry_after(h) for h in ({}, {"retry-after": "soon"}, {"retry-after": "inf"})] == [None] * 3


FATAL = [
    (Fault(401), ["401", "PLAD_TEST_API_KEY"]),
    (Fault(403), ["403", "PLAD_TEST_API_KEY"]),
    (Fault(404), ["404", "model.api"]),
    (Fault(429, body='{"error": {"message": "pay", "code": "insufficient_quota"}}'), ["429", "pay"]),
    (Fault(429, headers={"Retry-After": "86400"}), ["86400 s", "max_retry_after"]),
]


@pytest.mark.parametrize(("fault", "expected"), FATAL, ids=lambda f: getattr(f, "status", None))
def test_what_no_request_can_escape(fault, expected):
    with serving(lambda number, body: fault) as server:
        outcomes = ask(server, *[request()] * 5, runtime={"concurrency": 1})
    assert len(server.asked) == 1, "neither tried again nor asked for the others"
    assert all(o.fatal for o in outcomes) and all(part in outcomes[0].message for part in expected)


def test_waiting_ends_when_the_endpoint_refuses():
    """One request waits out a long Retry-After, another is refused: nobody waits on."""

    def fault(number: int, body: dict[str, Any]) -> Fault:
        return Fault(503, headers={"Retry-After": "60"}) if number == 0 else Fault(401, seconds=0.3)

    started = time.time()
    with serving(fault) as server:
        outcomes = ask(server, request(), request())
    assert all(o.fatal for o in outcomes) and time.time() - started < 5


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    with serving() as other:
        target = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
        with serving(lambda number, body: Fault(status, headers={"Location": target})) as server:
            [failure] = ask(server, request())
    assert other.asked == [], "nothing, so no key either, has arrived there"
    assert failure.fatal and "redirects" in failure.message and "localhost" in failure.message


def test_what_is_wrong_with_one_request_is_not_tried_again():
    with serving(lambda number, body: Fault(400)) as server:
        [failure] = ask(server, request())
    assert len(server.asked) == 1 and not failure.fatal and "fault 400" in failure.message


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_server_that_repeats_the_key(status):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {API_KEY}."}})
    with serving(lambda number, _: Fault(status, body=body)) as server:
        [failure] = ask(server, request())
    assert "Incorrect API key provided: (key)." in failure.message and API_KEY not in failure.message


def replying(message: dict[str, Any], reason: str | None, usage: Any = None) -> Any:
    body = {**answer({"messages": [{"content": "x"}]}), **({} if usage is None else {"usage": usage})}
    body["choices"] = [{"message": message, "finish_reason": reason}]
    with serving(lambda number, _: Fault(200, body=json.dumps(body))) as server:
        [outcome] = ask(server, request())
    assert len(server.asked) == 1
    return outcome


def test_kinds_of_answers():
    assert replying({"content": "a"}, "length").finish_reason == "length"
    thought = {"prompt_tokens": 4, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 9}}
    assert replying({"content": None, "reasoning_content": "hm"}, "length", thought) == Reply("", "length", 4, 9, 9)
    filtered = replying({"content": "a"}, "content_filter")
    assert (filtered.prompt_tokens, filtered.generated_tokens) == (10, 1), "it was paid for"
    assert "finish_reason content_filter" in filtered.message
    assert "I won't" in replying({"content": None, "refusal": "I won't"}, "stop").message
    assert replying({"content": "a"}, "stop", {}) == Reply("a", "stop", 0, 0, 0)


def test_concurrency_is_limited_and_used():
    with serving(seconds=0.1) as server:
        ask(server, *[request()] * 12, runtime={"concurrency": 4})
    assert server.most_busy == 4


def seconds_of(server: Server, count: int, **runtime: Any) -> float:
    started = time.monotonic()
    outcomes = ask(server, *[request()] * count, runtime=runtime)
    assert len(server.asked) == count and all(isinstance(o, Reply) for o in outcomes)
    return time.monotonic() - started


def test_requests_per_minute():
    with serving() as server:
        assert seconds_of(server, 25, requests_per_minute=600) >= (25 - 10) / 10  # a second's worth at once


def test_tokens_per_minute():
    """Estimated at 8 response tokens and 9 characters of prompt (2 tokens), used 12: 100 tokens a second."""
    with serving() as server:
        assert seconds_of(server, 25, concurrency=1, tokens_per_minute=6000) >= (24 * 12 - 100) / 100


def test_bucket(monkeypatch):
    now = itertools.count()  # a second a look
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: float(next(now)))
    bucket = Bucket(120)  # 2 a second
    assert [bucket.reserve(2), bucket.reserve(2), bucket.reserve(6), bucket.reserve(2)] == [0, 0, 2, 2]
    bucket.give_back(6)
    assert bucket.reserve(2) == 0
    assert Bucket(None).reserve(1e9) == 0


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "not set"), (" ", "not set"), ("a\nb", "characters"), ("clé-secrète", "characters")]
)
def test_keys_that_are_none(monkeypatch, value, expected):
    monkeypatch.delenv("PLAD_NO_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("PLAD_NO_KEY", value)
    with pytest.raises(PladError, match=f"PLAD_NO_KEY.*{expected}") as error:
        read_key("PLAD_NO_KEY")
    assert value is None or value.strip() == "" or value not in str(error.value)


def test_a_line_break_after_the_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("PLAD_NO_KEY", "abc\n")
    assert read_key("PLAD_NO_KEY") == "abc" and read_key(None) == ""
