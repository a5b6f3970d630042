"""Preference pairs as other trainers read them: one function a format, from a row of a pair table to a JSON object.

Plain text becomes one user message where a format knows messages only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plad_ray.records import response_text

Row = Mapping[str, Any]
Text = str | list[dict[str, str]]


def trl(row: Row) -> dict[str, Any]:
    """Preference type with explicit prompt, as text or messages; the other columns are ignored by its trainers
    (https://huggingface.co/docs/trl/dataset_formats#preference)."""
    return dict(row)


def ms_swift(row: Row) -> dict[str, Any]:
    """``messages`` end with the chosen answer, ``rejected_response`` is the other
    (https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html#dpo-orpo-cpo-simpo-rm)."""
    messages = [*_messages(row["prompt"], "user"), *_messages(row["chosen"], "assistant")]
    return {"messages": messages, "rejected_response": response_text(row["rejected"])}


def llama_factory(row: Row) -> dict[str, Any]:
    """Alpaca format for text, ShareGPT format for messages, both with ``ranking`` in dataset_info.json
    (https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html#preference-dataset)."""
    if isinstance(row["prompt"], str):
        return {"instruction": row["prompt"], "input": "", "chosen": row["chosen"], "rejected": row["rejected"]}
    return {"messages": row["prompt"], "chosen": row["chosen"][-1], "rejected": row["rejected"][-1]}


def nemo_rl(row: Row) -> dict[str, Any]:
    """``PreferenceDataset``: a context and ranked completions, the lower rank the better
    (https://docs.nvidia.com/nemo/rl/latest/guides/dpo.html#datasets)."""
    completions = [{"rank": i, "completion": _messages(row[side], "assistant")} for i, side in enumerate(SIDES)]
    return {"context": _messages(row["prompt"], "user"), "completions": completions}


def openrlhf(row: Row) -> dict[str, Any]:
    """``--prompt_key prompt --chosen_key chosen --rejected_key rejected``, for messages with ``--apply_chat_template``
    (https://openrlhf.readthedocs.io/en/latest/rl.html#datasets; openrlhf/datasets/reward_dataset.py)."""
    return {key: row[key] for key in ("prompt", *SIDES)}


SIDES = ("chosen", "rejected")
FORMATS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "trl": trl,
    "ms-swift": ms_swift,
    "llama-factory": llama_factory,
    "nemo-rl": nemo_rl,
    "openrlhf": openrlhf,
}


def dataset_info(name: str, file: str, chat: bool) -> dict[str, Any]:
    """What LLaMA-Factory's dataset_info.json says of a file that ``llama_factory`` wrote."""
    if not chat:
        columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
        return {name: {"file_name": file, "ranking": True, "columns": columns}}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {
        name: {
            "file_name": file,
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
            "tags": {**tags, "system_tag": "system"},
        }
    }


def _messages(text: Text, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
