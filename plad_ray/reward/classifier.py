"""A sequence-classification reward model with one logit (e.g. OpenAssistant/reward-model-deberta-v3-large-v2)."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from plad_ray.config import Scorer
from plad_ray.errors import PladError


class ClassifierScorer:
    """The logit of the text pair (prompt, response), in fp32.

    A pair longer than ``scorer.max_length`` loses prompt tokens only, never the response: at the end of a plain prompt,
    at the beginning of a dialogue.
    """

    def __init__(self, scorer: Scorer, dialogue: bool = False):
        self.check(scorer)
        assert scorer.model is not None
        self.scorer = scorer
        self.tokenizer = AutoTokenizer.from_pretrained(scorer.model)
        self.tokenizer.truncation_side = "left" if dialogue else "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForSequenceClassification.from_pretrained(scorer.model, dtype=torch.float32)
        if model.config.pad_token_id is None:  # decoders find the last real token by it
            model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.eval().to(self.device)

    @staticmethod
    def check(scorer: Scorer) -> None:
        if scorer.model is None:
            raise PladError("scorer.model: scorer classifier needs a reward model (hub id or local folder)")
        try:
            config = AutoConfig.from_pretrained(scorer.model)
        except (OSError, ValueError) as error:
            raise PladError(f"scorer.model {scorer.model}: no model can be read there: {error}") from None
        if config.num_labels != 1:
            raise PladError(f"scorer.model {scorer.model} has {config.num_labels} labels; a reward model has one logit")

    def __call__(self, prompts: list[str], responses: list[str], references: list[str | None]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(prompts), self.scorer.batch_size):
            rows = slice(start, start + self.scorer.batch_size)
            scores += self._batch(prompts[rows], responses[rows])
        return scores

    @torch.inference_mode()
    def _batch(self, prompts: list[str], responses: list[str]) -> list[float]:
        self._check_room(responses)
        inputs = self.tokenizer(
            prompts,
            responses,
            truncation="only_first",
            max_length=self.scorer.max_length,
            padding=True,
            return_tensors="pt",
        )
        logits_B1 = self.model(**inputs.to(self.device)).logits
        return logits_B1.squeeze(-1).float().tolist()

    def _check_room(self, responses: list[str]) -> None:
        """The response must fit whole, with one prompt token beside it."""
        room = self.scorer.max_length - self.tokenizer.num_special_tokens_to_add(pair=True) - 1
        lengths = [len(ids) for ids in self.tokenizer(responses, add_special_tokens=False)["input_ids"]]
        if max(lengths) > room:
            text = responses[lengths.index(max(lengths))]
            raise PladError(
                f"scorer.max_length {self.scorer.max_length} has room for responses of {room} tokens; one has "
                f"{max(lengths)}: {text[:80]!r}; raise scorer.max_length or lower generate.max_tokens"
            )
