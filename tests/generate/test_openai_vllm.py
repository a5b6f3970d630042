"""The openai engine against vLLM's own OpenAI server with a tiny Llama."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from plad_ray.artifacts import Store
from plad_ray.errors import PladError
from plad_ray.generate import parts, requests
from plad_ray.generate.openai_engine import OpenAIEngine
from plad_ray.generate.pools import build_pools
from plad_ray.generate.responses import PART
from plad_ray.generate.tasks import REQUEST
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import Policy
from plad_ray.models.sampling import sample
from plad_ray.models.tokens import decode
from tests.conftest import API_KEY, save_tiny_model
from tests.generate.generate_jobs import api_policy, draw, make_job, numbered, prompt_rows, prompts_artifact

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

#: the conversation's text and nothing else
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ARGUMENTS = (
    "--served-model-name m --host 127.0.0.1 --dtype float32 --max-model-len 64 --max-num-seqs 8 --enforce-eager "
    "--no-enable-chunked-prefill --max-num-batched-tokens 4096 --generation-config vllm --disable-log-stats"
)
ENVIRONMENT = {
    "VLLM_API_KEY": API_KEY,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model folder)"""
    folder = tmp_path_factory.mktemp("served")
    model = save_tiny_model(folder / "model", seed=3)
    (folder / "chat.jinja").write_text(TEMPLATE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += [*ARGUMENTS.split(), "--chat-template", str(folder / "chat.jinja")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.time() + 400
    while time.time() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def generate(
    store: Store, url: str, out: str, temperature: float, count: int = 6, key="PLAD_TEST_API_KEY", **model: Any
):
    """PART rows by prompt_id of ``count`` prompts."""
    policies = {"teacher": api_policy(url, [draw(temperatures=(temperature,))], **model)}
    prompts = prompts_artifact(store, prompt_rows(count), "prompts-0")
    runtime = {"teacher": {"api": {"api_key_env": key, "concurrency": 4, "timeout": 120}}}
    job = make_job(store, policies, {"prompts": prompts}, runtime, out)
    [pool] = build_pools(job)
    rows = numbered(
        requests.encoded(requests.pool_requests(prompts, pool, {"teacher": policies["teacher"]["draws"]}, 0), pool)
    )
    answers = OpenAIEngine(pool)(pa.Table.from_pylist(rows, schema=REQUEST))
    assert answers.num_rows == count and answers.column("error").null_count == count
    return {row["prompt_id"]: row for row in pa.concat_tables(parts.tables(job.out, PART.names)).to_pylist()}


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_greedy_text_is_that_of_transformers(store, served, kind):
    url, folder = served
    rows = generate(store, url, "out-0", 0.0, endpoint=kind)
    policy = Policy(str(folder), None, None, False, "")
    tokenizer = load_tokenizer(policy)
    ids = [tokenizer(row["prompt"]).input_ids for row in prompt_rows(6)]
    drawn = sample(load_model(policy), ids, [0.0] * 6, [0] * 6, 8, (tokenizer.eos_token_id,))
    for prompt, prompt_ids, (tokens, _) in zip(prompt_rows(6), ids, drawn, strict=True):
        row = rows[prompt["prompt_id"]]
        ended = tokens[-1] == tokenizer.eos_token_id
        # the server writes a space before the first word of a tokenizer that has no decoder of its own
        assert row["text"].split() == decode(tokenizer, tokens).split()
        assert row["finish_reason"] == ("stop" if ended else "length")
        assert (row["num_prompt_tokens"], row["num_tokens"]) == (len(prompt_ids), len(tokens))


def test_seeds_reach_the_server(store, served):
    url, _ = served
    first, again = (generate(store, url, out, 1.0, endpoint="completions") for out in ("out-1", "out-2"))
    assert {k: r["text"] for k, r in first.items()} == {k: r["text"] for k, r in again.items()}
    free = generate(store, url, "out-3", 1.0, endpoint="completions", send_seed=False)
    assert {k: r["text"] for k, r in first.items()} != {k: r["text"] for k, r in free.items()}


def test_what_the_server_refuses(store, served, monkeypatch):
    url, _ = served
    monkeypatch.setenv("PLAD_OTHER_KEY", "wrong-key-99")
    with pytest.raises(PladError, match=r"answered 401: .*PLAD_OTHER_KEY") as error:
        generate(store, url, "out-4", 0.0, key="PLAD_OTHER_KEY")
    assert "wrong-key-99" not in str(error.value)
    with pytest.raises(PladError, match=r"answered 404: .*model\.api"):
        generate(store, url + "/nowhere", "out-5", 0.0)
