"""`Run`: a training run of any kind, step by step, on one process or many.

A run folder holds `recipe.json` (every setting), `history.jsonl`, `curves.png`, `metrics.json`,
`checkpoints/step-*` (resumable) and, at the end, `final` (the averaged weights).

One optimiser step works on one global batch of `images_per_batch` pictures. It is cut into equal
parts, `accumulation` for each process, and the loss of each part is divided by the pictures of the
whole, so that processes and micro-batches change the speed and not the gradient (batch
normalisation, which sees its own part alone, excepted).
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from umd_edge._preprocess import PreprocessSpec
from umd_edge.errors import DataError, UsageError

from .batches import Batch, Picture, epoch_batches, pictures_of, steps_per_epoch
from .checkpoint import write_json
from .devices import check_precision
from .divergence import DivergenceWatch, TrainingDivergedError
from .history import History
from .losses import attention
from .models import UMDModel
from .optim import WeightAverage, build_optimizer, learning_rate
from .pictures import PictureSource, PictureStore, StreamedPictures, augment
from .recipe import Recipe
from .run_inputs import read_inputs
from .run_state import initialise, save_final, save_state, start_run
from .sharding import Sharding

__all__ = ["Run", "TrainingDivergedError"]


@atexit.register
def _leave_group() -> None:
    """End the talk between processes: a thread of it that still runs aborts the interpreter."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# How long a process waits for the others. Process 0 validates alone meanwhile: of a large model's
# retrieval that is minutes on a fast GPU and half a day on processors, and by default the others
# would give up, and end the run, after 10 minutes (NCCL) or 30 (gloo). A process that dies is
# noticed without this: its launcher ends the others.
_PATIENCE = timedelta(days=1)
# Pictures are kept this much larger than the model's input, so that a crop has pixels to spare.
_STORE_SCALE = 1.25


class Run(ABC):
    """Everything that changes from step to step, and how it is saved.

    What kinds of run differ in: the module whose forward is the loss, validation, and what they
    keep beside the model.
    """

    def __init__(self, recipe: Recipe, data: Path, out: Path, init: Path | None) -> None:
        self.recipe, self.out = recipe, out
        self.optim = recipe.optim
        check_precision("optim.precision", self.optim.precision)
        # Precision is ours (see `losses.autocast`); of accelerate come devices and processes.
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="fp16" if self.optim.precision == "float16" else "no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=_PATIENCE),
            ],
        )
        inputs = read_inputs(recipe, data, init)
        self.parent, self.corpus = inputs.parent, inputs.corpus
        self.tokenizer, self.spec = inputs.tokenizer, inputs.preprocess
        torch.manual_seed(recipe.seed)
        self.model = UMDModel(inputs.config, self.corpus.tasks, self.corpus.fields)
        if self.parent:
            initialise(self, self.parent)
        if self.optim.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        module = self.build()
        self.sharding = self._sharding(module)
        self.average = WeightAverage(self.model, self.optim.average_decay)
        self.optimizer = build_optimizer(
            module,
            self.optim,
            head_rate=self.optim.head_rate,
            fusion_rate=self.optim.fusion_rate,
        )
        self.pictures = self.training_pictures()
        self.parts = self.accelerator.num_processes * self.optim.accumulation
        self.per_epoch = steps_per_epoch(self.pictures, self.optim, self.parts)
        self.total = self.per_epoch * self.optim.epochs
        if not self.total:
            raise DataError(
                f"{len(self.pictures)} training pictures; at least {max(2, self.parts)} are needed"
            )
        self.step = 0
        self.watch = DivergenceWatch(self.optim.divergence_factor, out / "checkpoints")
        self.checkpoint = inputs.checkpoint(self.model, self.corpus)
        # a sharded module needs no wrapping, which would keep whole gradients in each process
        self.module = module if self.sharding else self.accelerator.prepare_model(module)
        self.prepared_optimizer: Any = self.accelerator.prepare(self.optimizer)
        if self.optim.compile:
            self.module.compile()
        self.average.to(self.accelerator.device)

    # --- what kinds of run differ in ------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The module that is trained, with the model in it.

        Its `forward(batch, pixel_values, rng, pictures)` gives the loss and its named parts.
        """

    @abstractmethod
    def validate(self) -> dict[str, Any]:
        """Validation metrics, by task and metric name."""

    def training_pictures(self) -> list[Picture]:
        """The pictures of the corpus with what is asked of each."""
        return pictures_of(self.recipe, self.corpus)

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a resumable checkpoint holds beside model, average and optimiser."""
        return {}

    def load_extra(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027 - most runs have none
        """Take over what `extra_tensors` gave."""

    def kept_tensors(self) -> dict[str, Tensor]:
        """What the final checkpoint holds in its state for the run that starts from it."""
        return {}

    def before_part(self) -> None:  # noqa: B027 - most runs need none
        """Called before each part of a batch."""

    def before_update(self, rng: torch.Generator) -> None:  # noqa: B027 - most runs need none
        """Called when all gradients of a step are there, before they are clipped."""

    def after_update(self) -> None:  # noqa: B027 - most runs need none
        """Called after the optimiser's step."""

    def notes(self) -> dict[str, Any]:
        """What else a step leaves in the history, by key."""
        return {}

    # --- the start ------------------------------------------------------------------------------

    def _sharding(self, module: nn.Module) -> Sharding | None:
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise UsageError(
                "accelerate was told to shard (--use_fsdp); launch without it and set "
                "optim.sharded = true"
            )
        if not self.optim.sharded or self.accelerator.num_processes == 1:
            return None
        return Sharding(self.recipe, module, self.model, self.accelerator.device)

    def load_pictures(self) -> None:
        """Read training and validation pictures, or get ready to."""
        self.store = self.picture_source(self.spec)
        held_out = sorted(
            {e.image_path for sets in self.corpus.validation for s in sets for e in s.examples}
        )
        size = self.spec.height, self.spec.width
        self.held_out = self._source(held_out, *size, self.spec.coefficient_bits)

    def picture_source(self, spec: PreprocessSpec) -> PictureSource:
        """Training pictures as large as a preprocessing and the recipe's crops need them."""
        scale = 1.0 if self.recipe.augment.is_off else _STORE_SCALE
        height, width = round(spec.height * scale), round(spec.width * scale)
        train = [picture.path for picture in self.pictures]
        return self._source(train, height, width, spec.coefficient_bits)

    def _source(self, paths: list[Path], height: int, width: int, bits: int) -> PictureSource:
        source = StreamedPictures if self.recipe.run.pictures == "stream" else PictureStore
        return source(paths, height, width, bits)

    # --- one step -------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; all randomness comes from the seed and the step's number."""
        self.module.train()
        rate = learning_rate(self.step, self.total, self.optim, self.optim.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = batch.split(self.parts)[rank::world]
        self.prepared_optimizer.zero_grad(set_to_none=True)
        if self.sharding:
            self.sharding.share_buffers()
        named: list[dict[str, float]] = []
        for index, part in enumerate(mine):
            last = index == len(mine) - 1
            hold = contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)
            with hold:
                named.append(self._part_step(part, len(batch.rows) / world, rank + world * index))
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared_optimizer)
        self.before_update(self._rng(self.parts))
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.gradient_clip)
        if self.sharding:
            norm = cast(Any, norm).full_tensor()
        if self.accelerator.scaler is None:  # which skips such steps by itself
            self.watch.require_finite("gradient", float(norm), self.step + 1)
        self.prepared_optimizer.step()
        self.step += 1
        self.watch.add_skipped(self.accelerator.optimizer_step_was_skipped, self.step)
        self.after_update()
        self.average.update(self.model, self.step)
        return _mean(gather_object(named), world)

    def _rng(self, part: int) -> torch.Generator:
        """Randomness of this step: another one for each part, the same whatever the machine."""
        seed = self.recipe.seed * 1_000_003 + self.step + 7_919_000_003 * part
        return torch.Generator().manual_seed(seed)

    def _part_step(self, batch: Batch, pictures: float, part: int) -> dict[str, float]:
        self.before_part()
        rng = self._rng(part)
        torch.manual_seed(rng.initial_seed())
        pixel_values = augment(
            self.store.fetch(batch.rows), batch.flips, self.spec, self.recipe.augment, rng
        )
        device = self.accelerator.device
        loss, named = self.module(batch.to(device), pixel_values.to(device), rng, pictures)
        self.watch.require_finite("loss", float(loss.detach()), self.step + 1)
        if self.sharding:
            loss = self.sharding.joined(loss)
        with attention(device):
            self.accelerator.backward(loss)
        return dict(named)

    # --- evaluation --------------------------------------------------------------------------

    def averaged_model(self) -> UMDModel:
        """A copy of the model with the averaged weights, on the run's device.

        Of a sharded run, only while validating.
        """
        if self.sharding:
            whole = self.sharding.model_with(self.average.tensors)
            return cast(UMDModel, whole).to(self.accelerator.device).eval()
        model = copy.deepcopy(self.model)
        if self.optim.average_decay > 0:
            model.load_state_dict(self.average.tensors, strict=True)
        return model.eval()

    # --- the whole run --------------------------------------------------------------------------

    def execute(
        self, *, resume: bool = False, on_step: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """Train to the end, evaluate and save.

        Args:
            resume: Continue where the newest checkpoint in the run folder stands; the losses are
                those of a run that was never stopped.
            on_step: Called after each optimiser step with its number.

        Returns:
            Validation metrics at the end.

        Raises:
            UsageError: The folder holds another run.
            TrainingDivergedError: The loss is not finite, or far above that of the start.
        """
        start_run(self, resume=resume)
        main = self.accelerator.is_main_process
        history = History(self.out, self.step) if main else None
        self.load_pictures()
        first = self.step
        metrics: dict[str, Any] = {}
        with tqdm(
            total=self.total,
            initial=self.step,
            unit="step",
            desc=self.recipe.name,
            smoothing=0.05,
            disable=not main,
        ) as bar:
            for batch in self._remaining_batches():
                losses = self.train_step(batch)
                epoch = -(-self.step // self.per_epoch)
                bar.set_postfix(epoch=epoch, loss=f"{losses['loss']:.3f}")
                bar.update()
                if history is not None:
                    history.add(kind="train", step=self.step, losses=losses, **self.notes())
                self.watch.add(losses["loss"], self.step)
                metrics = self._report(history) or metrics
                if on_step:
                    on_step(self.step)
        if self.step == first:  # resumed at its end
            metrics = self._validated()
        if history is not None:
            write_json(self.out / "metrics.json", {"step": self.step, "validation": metrics})
            history.draw(self.out / "curves.png")
        save_final(self, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def _remaining_batches(self) -> Iterator[Batch]:
        """The batches of all steps that are still to do; pictures of the next one are announced."""
        before: Batch | None = None
        first, skip = divmod(self.step, self.per_epoch)
        for epoch in range(first, self.optim.epochs):
            batches = epoch_batches(
                self.pictures,
                self.store.index,
                self.tokenizer,
                self.optim,
                self.recipe.seed,
                epoch,
                self.parts,
            )
            for position, batch in enumerate(batches):
                if epoch == first and position < skip:
                    continue
                self.store.ahead(batch.rows)
                if before is not None:
                    yield before
                before = batch
        if before is not None:
            yield before

    def _validated(self) -> dict[str, Any]:
        """Validation metrics in process 0; all processes put a sharded model together for it."""
        with self.sharding.whole(self.average) if self.sharding else contextlib.nullcontext():
            return self.validate() if self.accelerator.is_main_process else {}

    def _report(self, history: History | None) -> dict[str, Any]:
        """Validate and save where the settings say so; process 0 has the history."""
        metrics: dict[str, Any] = {}
        at_end = self.step == self.total
        every = self.per_epoch * self.recipe.run.evaluate_every_epochs
        if at_end or self.step % every == 0:
            metrics = self._validated()
            if history is not None:
                history.add(kind="validation", step=self.step, tasks=metrics)
                history.draw(self.out / "curves.png")
        if at_end or self.step % self.recipe.run.checkpoint_every_steps == 0:
            save_state(self)
        return metrics


def _mean(named: list[dict[str, float]], world: int) -> dict[str, float]:
    """Mean of each name over the parts that have it; of `loss` over processes, summed in each."""
    names = {name for part in named for name in part}
    means = {}
    for name in sorted(names):
        values = [part[name] for part in named if name in part]
        means[name] = sum(values) / (world if name == "loss" else len(values))
    return means
