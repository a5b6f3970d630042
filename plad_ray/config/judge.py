"""Settings of an LLM judge."""

from __future__ import annotations

from pydantic import Field, model_validator

from plad_ray.config.base import Count, Section
from plad_ray.config.models import Api
from plad_ray.config.runtime import ApiRuntime

QUESTION = (
    "Which response is the better answer to the request: more helpful, correct, and no longer than it needs to be? "
    "For a summary: which covers the important points without what is irrelevant, and says nothing that is wrong?"
)


class Judge(Section):
    """A model behind an OpenAI-compatible endpoint that is shown two texts. ``runtime`` never changes an artifact's name."""

    api: Api
    runtime: ApiRuntime = ApiRuntime()
    question: str = Field(QUESTION, min_length=1, description="what it is asked of the two")
    max_tokens: Count = Field(512, description="of its answer")

    @model_validator(mode="after")
    def _chats(self) -> Judge:
        if self.api.endpoint != "chat":
            raise ValueError("study.judge.api.endpoint: a judge is asked by chat")
        return self
