"""Where training curves go beside the artifact: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from plad_ray.config.base import Section


class Mlflow(Section):
    """A run an artifact. User and password, where the server asks for them, come from the environment
    (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN)."""

    uri: str = Field(description="of the tracking server, e.g. http://127.0.0.1:5000")
    experiment: str = "plad_ray"

    @model_validator(mode="after")
    def _no_secrets(self) -> Mlflow:
        if urlsplit(self.uri).username or urlsplit(self.uri).password:
            raise ValueError(
                "track.mlflow.uri is recorded with the results, so it may hold no user or password; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the training workers run"
            )
        return self


class Wandb(Section):
    """A run an artifact. The key comes from WANDB_API_KEY or `wandb login` where the training workers run."""

    project: str = "plad_ray"
    entity: str | None = None
    mode: Literal["online", "offline"] = Field("online", description="offline: written to a folder, for `wandb sync`")


class Track(Section):
    """Trackers of training curves; any number of them."""

    tensorboard: bool = Field(True, description="event files in <store>/tensorboard/<artifact>")
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None

    @classmethod
    def off(cls) -> Track:
        return cls(tensorboard=False)
