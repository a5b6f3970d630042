"""The experiment file: one YAML, parsed into frozen pydantic models before anything heavy is imported.

Everything outside ``runtime`` changes the result and is identity; ``runtime`` (workers, GPUs, paths) never is.
"""

from plad_ray.config.averaging import Averaging
from plad_ray.config.base import SPLITS, SplitName, overlay
from plad_ray.config.data import Columns, Data
from plad_ray.config.evaluation import Evaluate, Scorer
from plad_ray.config.experiment import Experiment
from plad_ray.config.loading import load, parse
from plad_ray.config.models import Api, Draw, Generate, Model, Role, Scratch
from plad_ray.config.pairs import Arm, Pairs, Pick, Rejection
from plad_ray.config.runtime import ApiRuntime, Pool, Runtime, TrainRuntime
from plad_ray.config.study import StudySettings, load_study
from plad_ray.config.tracking import Mlflow, Track, Wandb
from plad_ray.config.training import Distill, Lora, Objective, Sft, Training

__all__ = [
    "SPLITS",
    "Api",
    "ApiRuntime",
    "Arm",
    "Averaging",
    "Columns",
    "Data",
    "Distill",
    "Draw",
    "Evaluate",
    "Experiment",
    "Generate",
    "Lora",
    "Mlflow",
    "Model",
    "Objective",
    "Pairs",
    "Pick",
    "Pool",
    "Rejection",
    "Role",
    "Runtime",
    "Scorer",
    "Scratch",
    "Sft",
    "SplitName",
    "StudySettings",
    "Track",
    "TrainRuntime",
    "Training",
    "Wandb",
    "load",
    "load_study",
    "overlay",
    "parse",
]
