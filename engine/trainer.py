"""The trainer of this project."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.engine import hooks as libai_hooks
from libai.engine.default import DefaultTrainer
from libai.models import build_model
from libai.utils import distributed as dist
from libai.utils.events import EventStorage

from projects.SegFormer.dataset.build import data_parallel_place
from projects.SegFormer.dataset.inspection import quick_look
from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.engine import hooks
from projects.SegFormer.engine.checkpoint import (
    AVERAGE,
    Checkpointer,
    checkpoint_to_resume,
    mark_start,
)
from projects.SegFormer.engine.ema import WeightAverage
from projects.SegFormer.engine.optim import clip_gradients
from projects.SegFormer.engine.parallel import log_shares
from projects.SegFormer.engine.ranks import from_main, on_main_rank
from projects.SegFormer.engine.report import Report
from projects.SegFormer.engine.stopping import Stopped, Stopping
from projects.SegFormer.engine.watchdog import LIMIT, Watchdog
from projects.SegFormer.engine.writers import JsonWriter, LogWriter, TensorBoardWriter
from projects.SegFormer.evaluation import accuracy, mean_iou
from projects.SegFormer.evaluation.evaluate import (
    evaluate_classification,
    evaluate_segmentation,
    write_results,
)
from projects.SegFormer.evaluation.inference import build_inference
from projects.SegFormer.model_utils.segf_loader import fill_model
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_json
from projects.SegFormer.modeling.layers import batch_sbp
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

logger = logging.getLogger("libai." + __name__)

QUICK_RETRIES = (1, 2)  # seconds; after a signal a scheduler waits for half a minute or so


class SegformerTrainer(DefaultTrainer):
    """LiBai's DefaultTrainer with an exact resume, safe checkpoints and evaluation by mIoU.

    What a step sees depends on the seed and the iteration alone: the samples and their augmentation
    (dataset.sampler), and the noise that stochastic depth and dropout go by. So a training that is
    resumed, or split over other ranks, goes on with the same numbers.

    Args:
        cfg: a config as engine.config.load_config gives it.
        source: the file of the config and the overrides, for the report.
    Raises InputError for a config that cannot be run.
    """

    def __init__(self, cfg, source: tuple[str, Sequence[str]] | None = None):
        self._source = source
        for setting in ("amp", "activation_checkpoint", "zero_optimization"):
            if cfg.train[setting].enabled and not cfg.graph.enabled:
                raise InputError(
                    f"train.{setting}.enabled has no effect in eager mode: add graph.enabled=True, "
                    "or leave it"
                )
        if not cfg.train.train_iter and not cfg.train.train_epoch:
            raise InputError(
                "train.train_iter=0 and train.train_epoch=0: nothing to train; one is 1 or up"
            )
        build_inference(cfg)  # what is wrong with it is told now, not at the first evaluation
        self.watchdog = Watchdog(cfg.train.get("watchdog_seconds", LIMIT))
        self._resumed_from = None
        self._resumes, cfg.train.resume = cfg.train.resume, False  # LiBai would look for its own
        if self._resumes:
            self._resumed_from = from_main(partial(checkpoint_to_resume, cfg.train.output_dir))
        if not self._resumed_from:
            from_main(partial(mark_start, cfg.train.output_dir))
        cfg.train.start_iter = self._resumed_from[1] + 1 if self._resumed_from else 0
        cfg.train.setdefault("rdma_enabled", False)  # LiBai asks for it; older configs lack it
        super().__init__(cfg)
        self._batches = iter(self.train_loader)
        log_shares(cfg, self.model, self.optimizer)

    # --- building -------------------------------------------------------------------------------

    # LiBai's ways to build loaders differ: from 0.2 on they leave the data set to the loader, and a
    # graph's loader batch is one micro-batch.

    @classmethod
    def build_train_loader(cls, cfg, tokenizer=None):
        loader, train = cfg.dataloader.train, cfg.train
        # In graph mode a loader batch holds all micro-batches of a step, in eager mode one.
        steps = train.num_accumulation_steps
        loader.num_accumulation_steps = steps if cfg.graph.enabled else 1
        loader.train_batch_size = train.train_micro_batch_size * loader.num_accumulation_steps
        samples = train.global_batch_size // (1 if cfg.graph.enabled else steps)
        loader.consumed_samples = train.start_iter * samples
        loader.seed = loader.dataset.seed = train.seed
        loaders = instantiate(loader)
        check_data(cfg, loaders[0].dataset)
        if dist.is_main_process() and (note := quick_look(loaders[0].dataset)):
            logger.warning(f"Training data: {note}")
        return loaders

    @classmethod
    def build_test_loader(cls, cfg, tokenizer=None):
        loaders = []
        for loader in cfg.dataloader.test:
            loader.test_batch_size, loader.seed = cfg.train.test_micro_batch_size, cfg.train.seed
            loaders.append(instantiate(loader))
            check_data(cfg, loaders[-1].dataset)
        return loaders

    @classmethod
    def build_model(cls, cfg):
        # Here, not where the process starts: LiBai's own script gives each rank another seed.
        flow.manual_seed(cfg.train.seed)
        model = build_model(cfg.model)
        size = sum(parameter.numel() for parameter in model.parameters())
        logger.info(f"{type(model).__name__}: {size / 1e6:.2f} M parameters")
        if cfg.train.load_weight and cfg.train.start_iter == 0:
            fill_model(model, cfg.train.load_weight)
        return model

    @classmethod
    def build_graph(cls, cfg, model, optimizer=None, lr_scheduler=None, is_train=True):
        """The graph to train; for evaluation the model itself, see `evaluate`."""
        return super().build_graph(cfg, model, optimizer, lr_scheduler) if is_train else model

    def resume_or_load(self, resume=True):
        parts = dict(self.checkpointer.checkpointables)
        self.ema = None
        if self.cfg.train.ema.enabled:
            parts[AVERAGE] = self.ema = WeightAverage(self.model, self.cfg.train.ema.decay)
        self.checkpointer = Checkpointer(self.model, self.cfg.train.output_dir, **parts)
        if self._resumed_from:
            path, iteration = self._resumed_from
            self.checkpointer.load_training_state(path)
            self.start_iter = iteration + 1
        elif self._resumes:
            logger.info(
                f"No checkpoint in {self.cfg.train.output_dir}: starting from the beginning"
            )
            self.start_iter = 0

    def build_hooks(self):
        train = self.cfg.train
        # In eager mode LiBai counts micro-batches. A checkpoint between two of a step would lose
        # the gradients so far, so periods are rounded up to whole steps.
        step_length = 1 if self.cfg.graph.enabled else train.num_accumulation_steps

        def whole_steps(period: int) -> int:
            return -(-period // step_length) * step_length

        self._saves = hooks.PeriodicCheckpointer(
            self.checkpointer,
            whole_steps(train.checkpointer.period),
            train.checkpointer.max_to_keep,
        )
        if self._resumed_from:
            path, iteration = self._resumed_from
            self._saves.saved = os.path.basename(path), iteration
        writers = self.build_writers() if dist.is_main_process() else []
        report = Report(self.cfg, self._source, writers[-1]) if writers else None
        built = [
            libai_hooks.IterationTimer(),
            libai_hooks.LRScheduler(),
            self.ema and hooks.UpdateAverage(self.ema, step_length),
            hooks.WriteScalars(writers, train.log_period),
            hooks.ProgressBar() if hooks.shows_progress() else None,
            self._saves,
            report,
        ]
        if train.evaluation.enabled:
            period = whole_steps(train.evaluation.eval_period)
            best = hooks.BestCheckpointer(self.checkpointer, self._metric())
            evaluate = self._evaluate_and_write
            built.append(hooks.Evaluation(evaluate, period, best, writers, report))
        return [*built, hooks.StopTogether(step_length)]

    def build_writers(self):
        folder = self.cfg.train.output_dir
        return [
            LogWriter(self.global_batch_size, self.max_iter),
            JsonWriter(os.path.join(folder, "metrics.json"), self.start_iter),
            TensorBoardWriter(os.path.join(folder, "tensorboard"), self.start_iter),
        ]

    # --- running --------------------------------------------------------------------------------

    def train(self):
        """Train from `start_iter` to `max_iter`.

        Raises FloatingPointError when the loss or a weight is not finite; checkpoints stay as they
        are. Raises Stopped, with a checkpoint of the last step, on a signal.
        """
        logger.info(f"Training from iteration {self.start_iter} to {self.max_iter}")
        self.iter = self.start_iter - 1
        self.stopping = Stopping()
        with self.watchdog, EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(self.start_iter, self.max_iter):  # noqa: B020
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.after_train()
            except Stopped as stop:
                raise Stopped(stop.number, self._what_to_resume()) from None

    def after_step(self):
        self.watchdog.alive("training", self.iter)
        self.storage.iter = self.iter + 1  # LiBai's later versions count from 0
        super().after_step()

    def _what_to_resume(self) -> str:
        """Save the last step, if it is not, and say so."""
        if self._saves.saved is None or self._saves.saved[1] != self.iter:
            self._saves.save_or_end(f"model_{self.iter:07d}", self.iter, QUICK_RETRIES)
        path = os.path.join(self.cfg.train.output_dir, self._saves.saved[0])
        return f"after iteration {self.iter}; --resume goes on from {path}"

    def run_step(self):
        """One step of a graph; in eager mode one micro-batch, the last of a step with the update.

        LiBai's trainers, each version's in another way, join micro-batches, sum up what the model
        returns and look whether it is finite.
        """
        begun = time.perf_counter()
        self.watchdog.alive("waiting for data")
        data = next(self._batches)
        self.watchdog.alive("training")
        batch = self.get_batch(data, mixup_func=self.train_loader.mixup_func)
        batch["noise"] = self._noise(batch["images"].shape[0])
        waited = time.perf_counter() - begun
        if self.cfg.graph.enabled:
            self._put(self.graph_train(**batch), waited)
            return
        losses = self.model(**batch)
        steps = self.cfg.train.num_accumulation_steps
        (sum(losses.values()) / steps).backward()
        self._put(losses, waited)
        if (self.iter + 1) % steps == 0:
            clip_gradients(self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _put(self, losses: dict[str, flow.Tensor], waited: float) -> None:
        """Losses, of a graph one for each micro-batch, and the seconds that the data took."""
        values = {name: on_main_rank(loss.mean()) for name, loss in losses.items()}
        if not dist.is_main_process():
            return
        if not np.isfinite(sum(values.values())):
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.iter}: lower optim.params.lr or look "
                f"at the data; the checkpoints in {self.cfg.train.output_dir} are from before"
            )
        self.storage.put_scalars(data_time=waited, total_loss=sum(values.values()))
        if len(values) > 1:
            self.storage.put_scalars(**values)

    def _noise(self, batch_size: int):
        """Uniform noise by the samples' positions in the stream: (batch_size, noise_size)."""
        rank, size = data_parallel_place()
        steps = self.cfg.dataloader.train.num_accumulation_steps
        micro_batch = batch_size // (size * steps)
        first = self.iter * batch_size
        rows = [
            np.random.default_rng(
                (self.cfg.train.seed, first + (k * size + rank) * micro_batch + j)
            ).random(self.model.noise_size, np.float32)
            for k in range(steps)
            for j in range(micro_batch)
        ]
        noise = flow.tensor(np.stack(rows))
        return noise.to_global(placement=dist.get_layer_placement(0), sbp=batch_sbp())

    # --- evaluation -----------------------------------------------------------------------------

    def _metric(self) -> str:
        """The figure whose highest value makes the best checkpoint."""
        return "top1" if isinstance(self.model, SegformerForImageClassification) else "mIoU"

    def _evaluate_and_write(self) -> dict[str, float]:
        def after_batch():
            self.watchdog.alive("evaluating")
            self.stopping.check("evaluating")

        self.watchdog.alive("evaluating")
        with self.ema.applied() if self.ema else nullcontext():
            result = self.evaluate(self.cfg, self.test_loader, self.model, after_batch)
        try:
            self.write_evaluation(self.cfg, result)
        except InputError as error:
            logger.error(f"{error}; training goes on")
        return flat_scores(result)

    @classmethod
    def evaluate(cls, cfg, test_loaders, model, after_batch=lambda: None) -> dict:
        """Evaluate `model` on the first of `test_loaders` and print the table.

        It runs eagerly also in graph mode: images differ in size, and a graph is for one size.

        Args:
            after_batch: is called after each batch.
        Returns:
            see `evaluate_segmentation` and `evaluate_classification`.
        """
        settings = cfg.train.evaluation
        limits = dict(max_batches=settings.eval_iter, after_batch=after_batch)
        if isinstance(model, SegformerForImageClassification):
            result = evaluate_classification(model, test_loaders[0], **limits)
            table = accuracy.format_table(result)
        else:
            result = evaluate_segmentation(
                model,
                test_loaders[0],
                build_inference(cfg),
                boundary_iou=settings.get("boundary_iou", False),
                worst_images=settings.get("worst_images", 0),
                output_dir=cfg.train.output_dir,
                **limits,
            )
            table = mean_iou.format_table(result)
        logger.info("Evaluation in percent:\n" + table)
        return result

    @classmethod
    def write_evaluation(cls, cfg, result: dict) -> None:
        """Write evaluation.json, on the main rank. Raises InputError when the disk is full."""
        if dist.is_main_process():
            write_json(os.path.join(cfg.train.output_dir, "evaluation.json"), result)

    @classmethod
    def test(cls, cfg, test_loaders, model, evaluator=None, after_batch=lambda: None) -> dict:
        """LiBai's name for both: evaluate, write, and give the scores as `flat_scores` does."""
        result = cls.evaluate(cfg, test_loaders, model, after_batch)
        cls.write_evaluation(cfg, result)
        return flat_scores(result)

    @classmethod
    def write_results(cls, cfg, test_loaders, model, after_batch=lambda: None) -> None:
        """Write the predictions for the first of `test_loaders` as a benchmark's server wants them,
        to `results` in the output folder.
        """
        if isinstance(model, SegformerForImageClassification):
            raise InputError("--format-only is for segmentation; this config trains a classifier")
        write_results(
            model,
            test_loaders[0],
            build_inference(cfg),
            max_batches=cfg.train.evaluation.eval_iter,
            folder=os.path.join(cfg.train.output_dir, "results"),
            after_batch=after_batch,
        )


def check_data(cfg, dataset) -> None:
    """Raises InputError: the data set does not fit the model.

    There must be an output for every class, what counts nowhere must be one number, and images must
    have the channels that the model takes and that there are means for.
    """
    model = cfg.model.cfg
    if model.num_classes != len(dataset.classes):
        raise InputError(
            f"the model has {model.num_classes} classes, the data set "
            f"{len(dataset.classes)}: set cfg.num_classes={len(dataset.classes)}"
        )
    for name in ("ignore_index", "num_channels"):
        wanted, given = model.get(name), getattr(dataset, name, None)
        if None not in (wanted, given) and wanted != given:
            raise InputError(
                f"the model has {name}={wanted}, the data set {given}: give each data set of the "
                f'config {name}="${{model.cfg.{name}}}"'
            )
    for transform in dataset.transforms.transforms:
        if isinstance(transform, Normalize):
            transform.check(dataset.num_channels)


def flat_scores(result: dict) -> dict[str, float]:
    """The scores of an evaluation as one flat dict, without absent classes.

    Of ImageNet's thousand classes there are none in it: their accuracies are no figures of a
    training.
    """
    flat = {name: value for name, value in result.items() if not isinstance(value, dict)}
    nested = [] if "top1" in result else [n for n, value in result.items() if n not in flat]
    return flat | {
        f"{name}/{label}": value
        for name in nested
        for label, value in result[name].items()
        if value is not None
    }
