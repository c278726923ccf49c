"""A run's settings: a TOML recipe with `--set a.b=c` on top."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umd_edge._task import TaskSpec
from umd_edge.errors import ManifestError, UsageError

from .config import from_dict, model_config
from .distillation_config import DistillationConfig
from .gm_coord import CoordinationConfig
from .ranges import ABOVE_ZERO, AT_LEAST_ZERO, BELOW_ONE, UP_TO_ONE, check_ranges
from .reconstruction_config import ReconstructionConfig
from .task_training import TaskTraining

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - exercised on Python 3.10 only
    import tomli as tomllib

__all__ = [
    "AugmentConfig",
    "DatasetConfig",
    "OptimConfig",
    "Recipe",
    "StructuredConfig",
    "load_recipe",
    "recipe_from_dict",
]


_OPTIM_RANGES = {
    "learning_rate": AT_LEAST_ZERO,
    "stem_rate": AT_LEAST_ZERO,
    "head_rate": AT_LEAST_ZERO,
    "fusion_rate": AT_LEAST_ZERO,
    "weight_decay": AT_LEAST_ZERO,
    "warmup_fraction": UP_TO_ONE,
    "gradient_clip": ABOVE_ZERO,
    "divergence_factor": AT_LEAST_ZERO,
    "average_decay": BELOW_ONE,
    "structured_dropout": UP_TO_ONE,
    "structured_dropout_one": UP_TO_ONE,
    "structured_dropout_all": UP_TO_ONE,
}
_AUGMENT_RANGES = {
    "scale": BELOW_ONE,
    "aspect": AT_LEAST_ZERO,
    "rotate_degrees": AT_LEAST_ZERO,
    "brightness": UP_TO_ONE,
    "contrast": UP_TO_ONE,
    "colour": UP_TO_ONE,
    "erase": UP_TO_ONE,
}


def _at_least(path: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UsageError(f"{path}: {value} given; {lowest} or more is allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """One JSONL data set of a run."""

    name: str
    path: str
    """Folder below the data directory; holds `train.jsonl`, `val.jsonl`, `test.jsonl`."""
    prefix: str = ""
    """In front of the files' names, such as `images_` for one line a picture."""
    free_with: str = ""
    """Other manifests of the folder, such as `{split}.jsonl`: a record that does not say whether it
    is free is as free as theirs of the same picture; for captions put together from them."""
    flip: bool = False
    """Mirror left and right in training; only where no label speaks of a side. Refused where a task
    reads a text of the set, which may."""
    repeat: int = 1
    """How often its pictures are drawn in one epoch."""
    fraction: float = 1.0
    """Part of the training patients that takes part, chosen by a hash of their number: those of a
    smaller part are among those of a larger one. Validation is never cut."""

    def __post_init__(self) -> None:
        _at_least("datasets.repeat", self.repeat, 1)
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(
                f"datasets.fraction: {self.fraction} given for {self.name!r}; above 0 and up to 1 "
                "is allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyConfig:
    """Texts that the tokenizer's vocabulary is trained on beside those of the tasks."""

    path: str
    """JSONL file below the data directory."""
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredConfig:
    """A structured field; mean, std and categories are fitted on the training split."""

    name: str
    kind: Literal["binary", "numeric", "categorical"]
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimisation of a run."""

    epochs: int = 40
    epoch: Literal["pictures", "texts"] = "pictures"
    """What one epoch shows once: each picture, with `texts_per_image` of its texts, or each text, a
    picture as often as it needs for that (so the paper counts its epochs)."""
    images_per_batch: int = 48
    """Of one optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches that one optimiser step is made of, in each process."""
    texts_per_image: int = 3
    """Questions drawn for an image each time it is seen; it is encoded once for all of them."""
    algorithm: Literal["adamw", "muon"] = "adamw"
    """`muon` moves inner matrices along orthogonalised momentum: far fewer epochs from scratch."""
    learning_rate: float = 1e-3
    stem_rate: float = 1.0
    """Learning rate of a convolutional stem, as a multiple of the rest's."""
    head_rate: float = 1.0
    """Learning rate of the task heads and decoders, as a multiple of the rest's."""
    fusion_rate: float = 1.0
    """Likewise of the fusion, its projections and poolers."""
    weight_decay: float = 0.05
    warmup_fraction: float = 0.05
    schedule: Literal["cosine", "linear"] = "cosine"
    gradient_clip: float = 1.0
    """Largest norm of the gradients; 1e9 is as good as none."""
    divergence_factor: float = 20.0
    """A run stops where its smoothed loss is more than this many times the first step's, which
    counts as 1 at least; 0: never."""
    average_decay: float = 0.998
    """Decay of the weight average that is evaluated and kept; 0 keeps the last weights."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of encoders and fusion; heads and losses are always float32. `float16` needs a GPU."""
    gradient_checkpointing: bool = False
    """Computes the encoders' activations again in the backward pass: less memory, more time."""
    compile: bool = False
    """`torch.compile` of the whole step; needs a C++ compiler."""
    sharded: bool = False
    """Several processes: each holds its part of weights, gradients and moments (FSDP)."""
    structured_dropout: float = 0.3
    """Chance that a present structured value is hidden."""
    structured_dropout_one: float = 0.0
    """Chance that just one of an example's present values is hidden instead, as where a form lacks
    one entry: independent chances seldom draw that."""
    structured_dropout_all: float = 0.15
    """Chance that all of an example's structured values are hidden."""

    def __post_init__(self) -> None:
        _at_least("optim.epochs", self.epochs, 1)
        _at_least("optim.images_per_batch", self.images_per_batch, 2)  # batch normalisation
        _at_least("optim.texts_per_image", self.texts_per_image, 1)
        _at_least("optim.accumulation", self.accumulation, 1)
        check_ranges("optim", self, _OPTIM_RANGES)
        for name, value in (
            ("algorithm", "muon"),
            ("precision", "float16"),
            ("compile", True),
        ):
            if self.sharded and getattr(self, name) == value:
                raise UsageError(
                    f"optim.{name}: {value!r} given, which does not work with parts of tensors; "
                    "set optim.sharded = false or choose another value"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class NormaliseConfig:
    """How pixel values of 0..1 are normalised; a published encoder has its own numbers."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Random changes of training pictures; all zero switches them off."""

    scale: float = 0.35
    """Largest part of the side that a crop may leave out."""
    aspect: float = 0.15
    """Largest relative change of the aspect ratio."""
    rotate_degrees: float = 10.0
    brightness: float = 0.2
    contrast: float = 0.25
    colour: float = 0.05
    erase: float = 0.0
    """Chance that a random rectangle is blanked."""

    def __post_init__(self) -> None:
        check_ranges("augment", self, _AUGMENT_RANGES)

    @property
    def is_off(self) -> bool:
        """Whether pictures stay as they are, but for mirroring where a data set allows it."""
        return not any(dataclasses.astuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """When a run reports and saves."""

    evaluate_every_epochs: int = 5
    checkpoint_every_steps: int = 200
    pictures: Literal["memory", "stream"] = "memory"
    """`stream` decodes each picture anew when its turn comes, for data larger than the memory."""

    def __post_init__(self) -> None:
        _at_least("run.evaluate_every_epochs", self.evaluate_every_epochs, 1)
        _at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run, apart from the data themselves."""

    name: str
    seed: int = 0
    allow_non_commercial: bool = False
    train_splits: tuple[str, ...] = ("train",)
    validation_splits: tuple[str, ...] = ("val",)
    fold: int = -1
    """With `folds`: which part of the training and validation pictures is held out."""
    folds: int = 0
    """Patient-wise cross-validation inside train + val; 0 uses the splits as they stand."""
    model: dict[str, Any] = field(default_factory=dict)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    run: RunConfig = field(default_factory=RunConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Of `pretrain` and `adapt`."""
    coordination: CoordinationConfig = field(default_factory=CoordinationConfig)
    """Of `finetune`."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Of `umd-edge-export distil`."""
    datasets: tuple[DatasetConfig, ...] = ()
    vocabulary: tuple[VocabularyConfig, ...] = ()
    vocabulary_alone: bool = False
    """The tokenizer's vocabulary is trained on `vocabulary` alone, and reads the tasks' texts in
    its words, as a run does that starts from another's."""
    structured_fields: tuple[StructuredConfig, ...] = ()
    tasks: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        model_config(self.model)  # reports a bad model table early
        if not self.datasets or not self.tasks:
            raise UsageError("recipe: at least one [[datasets]] and one [[tasks]] are needed")
        if self.folds and not 0 <= self.fold < self.folds:
            raise UsageError(f"recipe: fold {self.fold} given; 0..{self.folds - 1} is allowed")
        _at_least("recipe.seed", self.seed, 0)
        if self.vocabulary_alone and not self.vocabulary:
            raise UsageError("recipe: vocabulary_alone needs one [[vocabulary]] or more")
        both = sorted(set(self.train_splits) & set(self.validation_splits))
        if both and not self.folds:
            raise UsageError(
                f"recipe: splits {both} are in both train_splits and validation_splits"
            )
        for kind, listed in (
            ("datasets", [dataset.name for dataset in self.datasets]),
            ("tasks", [str(task.get("name")) for task in self.tasks]),
        ):
            if len(set(listed)) != len(listed):
                raise UsageError(f"recipe: [[{kind}]] has a name twice among {listed}")
        names = {dataset.name for dataset in self.datasets}
        for index, task in enumerate(self.tasks):
            strangers = set(self.training_of(index).datasets) - names
            if strangers:
                raise UsageError(
                    f"recipe: tasks[{index}].datasets names {sorted(strangers)}; "
                    f"[[datasets]] has {sorted(names)}"
                )
            try:
                spec = self.spec_of(task, ("?",))
            except ManifestError as error:
                raise UsageError(f"recipe: {error}") from error
            self._check_flips(spec, self.training_of(index).datasets)

    def _check_flips(self, task: TaskSpec, datasets: tuple[str, ...]) -> None:
        """A text may name a side, in the question or in the answer: its picture stays as it is."""
        mirrored = [d.name for d in self.datasets if d.flip and d.name in datasets]
        if mirrored and task.text_paths:
            raise UsageError(
                f"recipe: datasets.flip: true given for {mirrored}, and the task {task.name!r} "
                f"reads their texts {list(task.text_paths)}; set flip = false, for left and right "
                "are not to be changed where text is read"
            )

    def training_of(self, index: int) -> TaskTraining:
        """The training-only settings of a task."""
        own = {f.name for f in dataclasses.fields(TaskTraining)}
        table = {key: value for key, value in self.tasks[index].items() if key in own}
        return from_dict(TaskTraining, table, f"tasks[{index}]")

    @staticmethod
    def spec_of(task: dict[str, Any], outputs: tuple[str, ...] = ()) -> TaskSpec:
        """The `TaskSpec` of a task table, with `outputs` where the table lists none."""
        own = {f.name for f in dataclasses.fields(TaskTraining)}
        table = {key: value for key, value in task.items() if key not in own}
        key = "answers" if table.get("kind") == "vqa" else "labels"
        if table.get("kind") != "retrieval":
            table.setdefault(key, list(outputs))
        target = table.get("target")
        if isinstance(target, dict) and isinstance(target.get("map"), dict):
            # TOML has no null: an empty string says "known, and not an output of this task"
            mapping = {source: name or None for source, name in target["map"].items()}
            table["target"] = {**target, "map": mapping}
        return TaskSpec.from_dict(table, f"tasks.{table.get('name', '?')}")

    def to_dict(self) -> dict[str, Any]:
        """JSON object with every setting, defaults included."""
        return dataclasses.asdict(self)


def _assign(table: dict[str, Any], setting: str) -> None:
    path, separator, text = setting.partition("=")
    if not separator or not path:
        raise UsageError(f"--set {setting!r}: write it as path.to.setting=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # an unquoted string
    place: Any = table
    *parents, last = path.split(".")
    for parent in parents:
        if isinstance(place, list):
            place = place[_row(place, parent, setting)]
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, (dict, list)):
            raise UsageError(f"--set {setting!r}: {parent!r} is no table")
    place[_row(place, last, setting) if isinstance(place, list) else last] = value


def _row(entries: list[Any], text: str, setting: str) -> int:
    """Place in a list of tables: `datasets.0.fraction` is of the first data set."""
    if not text.isdecimal() or int(text) >= len(entries):
        raise UsageError(
            f"--set {setting!r}: {text!r} given where a number from 0 to {len(entries) - 1} is "
            "allowed"
        )
    return int(text)


def load_recipe(path: str | Path, settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file.
        settings: `a.b=c` each; values are TOML, a bare word is a string. A number chooses from a
            list: `datasets.0.fraction=0.1`.

    Raises:
        UsageError: The file is missing or broken, or holds an unknown or ill-typed setting.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {str(path)!r} cannot be read; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {str(path)!r} is not valid TOML: {error}") from error
    for setting in settings:
        _assign(table, setting)
    table.setdefault("name", Path(path).stem)
    return recipe_from_dict(table)


def recipe_from_dict(table: dict[str, Any]) -> Recipe:
    """A recipe from its table, such as the one in a checkpoint's provenance.

    Raises:
        UsageError: Unknown or ill-typed setting.
    """
    return from_dict(Recipe, table, "recipe")
