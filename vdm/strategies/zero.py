"""ZeRO (Rajbhandari et al., 2020) by DeepSpeed: stage 1 cuts optimizer states into pieces, 2 gradients too, 3 weights too.

DeepSpeed takes one optimizer, steps one flat tensor for each of its groups, and reads gradients away as they come. What this
strategy adds: groups are clipped each by itself, a group without gradients rests (a discriminator before its first step), a step
that is not finite changes nothing, checkpoints hold whole tensors, and all of it on CPUs as well. Weights stay in float32;
`bf16-mixed` is autocast, as under the other strategies.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vdm.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError
from vdm.strategies.base import Piece, Sharded, part_of, put_together, without_hooks
from vdm.strategies.flat import Flat

KEPT = -1  # in the set of modules that use a parameter: it is not released


class Zero(Sharded):
    """
    Args:
        stage: what is cut, see above.
        offload_optimizer: optimizer states live, and steps are taken, in the memory of the host.
        offload_parameters: pieces of weights as well; stage 3.
        units: of stage 3, see `Sharded`.
        reduce_bucket_size: gradients, in numbers, that are sent at once.
        allgather_bucket_size: weights, in numbers, that are sent at once after a step; stages 1 and 2.
        overlap_communication: gradients are sent while the backward pass goes on.
        prefetch_bucket_size: weights, in numbers, that are fetched ahead; stage 3.
        max_live_parameters: weights, in numbers, that may be whole at once; stage 3.
        pin_memory: of the host, for what is offloaded: faster, where there is enough.
        timeout_minutes: how long a rank waits for the others.
    """

    def __init__(
        self,
        *,
        stage: Literal[1, 2, 3],
        offload_optimizer: bool,
        offload_parameters: bool,
        units: Sequence[str],
        reduce_bucket_size: PositiveInt,
        allgather_bucket_size: PositiveInt,
        overlap_communication: bool,
        prefetch_bucket_size: NonNegativeInt,
        max_live_parameters: PositiveInt,
        pin_memory: bool,
        timeout_minutes: PositiveFloat,
    ):
        if offload_parameters and stage < 3:
            raise ConfigError("only pieces of weights can be kept elsewhere", key="trainer.strategy.offload_parameters",
                              got=f"stage {stage}", allowed="stage 3")  # fmt: skip
        super().__init__(units=units if stage == 3 else (), timeout_minutes=timeout_minutes)
        self.stage, self.offload_optimizer, self.offload_parameters = stage, offload_optimizer, offload_parameters
        self.reduce_bucket_size, self.allgather_bucket_size = reduce_bucket_size, allgather_bucket_size
        self.overlap_communication, self.prefetch_bucket_size = overlap_communication, prefetch_bucket_size
        self.max_live_parameters, self.pin_memory = max_live_parameters, pin_memory
        self.engine: Any = None
        self._is_alone = False
        self._scales: dict[int, Tensor | None] = {}  # of gradients, by the id of their group; None: it rests
        self._active: set[int] = set()  # groups that this step has a gradient for
        self._set_aside: list[tuple[Tensor, Tensor]] = []

    # ---- building -------------------------------------------------------------------------------------------------

    def setup_distributed(self) -> None:
        deepspeed = import_deepspeed(self.root_device)
        # Nobody tells it to a process that is alone, and DeepSpeed insists. Later jobs of a sweep must not see it.
        self._is_alone = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))
        super().setup_distributed()
        deepspeed.init_distributed(dist_backend=self._process_group_backend, auto_mpi_discovery=False, verbose=False)

    def teardown(self) -> None:
        super().teardown()
        if self._is_alone:
            os.environ.pop("LOCAL_RANK", None)

    def shard(self, trainer: pl.Trainer) -> None:
        import deepspeed

        self.setup_optimizers(trainer)
        (optimizer,) = self.optimizers
        refuse_whole_matrices(optimizer)
        learning = [p for p in self.lightning_module.parameters() if p.requires_grad]
        self._groups = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        assert len(learning) == sum(map(len, self._groups)), "the optimizer has what is trained"
        self._shapes = {id(p): p.shape for p in self.lightning_module.parameters()}
        for parameter in self.lightning_module.parameters():
            if not parameter.dim():  # DeepSpeed cannot send a single number
                parameter.data = parameter.data.view(1)
        self._units = [module for _, module in self.modules_of_units()]
        self._sharing = Sharing(self, self._units, learning)
        self.engine, *_ = deepspeed.initialize(
            model=self._sharing, optimizer=optimizer, config=self._settings(), dist_init_required=False
        )
        self.zero = self.engine.optimizer
        self._kept = [] if self.stage < 3 else list(self._sharing.parameters(recurse=False))
        self.flat = Flat(self.zero, self._groups, self._shapes, stage=self.stage)
        for number, group in enumerate(self._groups):
            for parameter in group:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._active.add(number))
        optimizer.register_step_pre_hook(self._before_group)
        optimizer.register_step_post_hook(self._after_group)

    def _settings(self) -> dict[str, Any]:
        elsewhere = {"device": "cpu", "pin_memory": self.pin_memory}
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.reduce_bucket_size,
            "allgather_bucket_size": self.allgather_bucket_size,
            "overlap_comm": self.overlap_communication and self.root_device.type != "cpu",
        }
        if self.offload_optimizer:
            zero["offload_optimizer"] = elsewhere
        if self.stage == 3:
            # What does not belong to a unit is kept whole through a step, whatever its size.
            zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": self.prefetch_bucket_size}
            zero |= {"stage3_max_live_parameters": self.max_live_parameters}
            zero |= {"stage3_max_reuse_distance": self.max_live_parameters}
        if self.offload_parameters:
            zero["offload_param"] = elsewhere
        return {
            "train_micro_batch_size_per_gpu": 1,  # not looked at: batches come from the data module
            "gradient_accumulation_steps": self.lightning_module.accumulate,
            "gradient_clipping": 0.0,  # groups are clipped here, each by itself
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's own is as fast, and compiles nothing
            "steps_per_print": None,
        }

    # ---- a step ---------------------------------------------------------------------------------------------------

    def losses(self, stage: Any, batch: Any, *, is_last: bool) -> dict[str, Tensor]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        self._keep(self._kept)
        with torch.autocast(self.root_device.type, enabled=False):  # entered again inside, DeepSpeed would leave it
            return self.engine(batch)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        self.engine.backward(closure_loss, scale_wrt_gas=False)
        return closure_loss

    def clip(self, optimizer: Optimizer, limit: float | None) -> Tensor:
        lengths = [[torch.linalg.vector_norm(g, dtype=torch.float64) for g in group] for group in self.flat.gradients()]
        squares = [sum((length.square() for length in group), torch.zeros(())) for group in lengths]
        active = [torch.tensor(float(number in self._active)) for number in range(len(squares))]
        sums = torch.stack([value.double().to(self.root_device) for value in (*squares, *active)])
        squares, active = self.reduce_sum(sums).chunk(2)
        norms = squares.sqrt()
        for group, norm, is_active in zip(optimizer.param_groups, norms, active.tolist(), strict=True):
            scale = torch.ones_like(norm) if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)
            self._scales[id(group)] = scale if is_active else None
        return norms.norm().float()

    def optimizer_step(self, optimizer: Optimizer, closure: Any, model: Any = None, **kwargs: Any) -> None:
        closure()
        self.engine.step()

    def _before_group(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """DeepSpeed steps one group, or a part of one, at a time."""
        self._set_aside = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                scale = self._scales.get(id(group))
                if scale is not None:
                    parameter.grad.mul_(scale.to(parameter.grad))
                    continue
                self._set_aside.append((parameter, parameter.grad))
                parameter.grad = None  # torch's optimizers pass over it

    def _after_group(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gradient in self._set_aside:
            parameter.grad = gradient

    def clear(self, optimizer: Optimizer) -> None:
        self.flat.clear_gradients()
        self._active.clear()
        self._scales.clear()

    # ---- pieces ---------------------------------------------------------------------------------------------------

    def is_cut(self, parameter: nn.Parameter) -> bool:
        return self.stage < 3 and parameter.requires_grad or hasattr(parameter, "ds_tensor")

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return parameter.ds_tensor.detach() if hasattr(parameter, "ds_tensor") else parameter.detach()

    def whole(self, pieces: Mapping[Any, Piece]) -> dict[Any, Tensor]:
        shapes = {name: self._shapes[id(parameter)] for name, (parameter, _) in pieces.items()}
        cut = {name: (piece, shapes[name]) for name, (p, piece) in pieces.items() if hasattr(p, "ds_tensor")}
        found = put_together(cut, self.root_device)
        if not self.is_global_zero:
            return {}
        copies = {name: piece for name, (_, piece) in pieces.items() if name not in cut}
        return found | {name: piece.to("cpu", copy=True).view(shapes[name]) for name, piece in copies.items()}

    def cut(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        if not hasattr(parameter, "ds_tensor"):
            return whole
        return part_of(whole, parameter.ds_tensor.numel(), self.global_rank)

    def refresh(self) -> None:
        if self.stage == 3:
            self._release(list(self._sharing.parameters()))  # whole copies, of a step that was not taken
        self.zero.refresh_fp32_params()

    def whole_weights(self) -> AbstractContextManager:
        return nullcontext() if self.stage < 3 else self._gathered()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        parameters = list(self._sharing.parameters())
        self._release(parameters)  # pieces may have been exchanged for those of a moving average
        self._keep(parameters)
        try:
            with without_hooks(self._units):
                yield
        finally:
            self._release(parameters)

    def _keep(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make them whole until the step, or until they are released."""
        absent = [p for p in parameters if p.ds_status.name != "AVAILABLE"]
        if absent:
            absent[0].all_gather(param_list=absent)
        for parameter in parameters:
            parameter.ds_active_sub_modules.add(KEPT)

    def _release(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        there = [p for p in parameters if p.ds_status.name == "AVAILABLE"]
        if there:
            there[0].partition(param_list=there)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self.flat.whole_state(self.root_device)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        (state,) = checkpoint["optimizer_states"]
        self.flat.load_state(state)


class Sharing(nn.Module):
    """What DeepSpeed sees of a stage: units, that it fetches and releases, and all other weights."""

    def __init__(self, strategy: Zero, units: Sequence[nn.Module], learning: Sequence[nn.Parameter]):
        super().__init__()
        self.units = nn.ModuleList(units)
        inside = {id(p) for unit in units for p in unit.parameters()}
        for number, parameter in enumerate(p for p in learning if id(p) not in inside):
            self.register_parameter(f"weight_{number}", parameter)
        self._strategy = [strategy]  # in a list, or it would be a part of what is shared

    def forward(self, batch: Any) -> dict[str, Tensor]:
        (strategy,) = self._strategy
        with strategy.precision_plugin.forward_context():
            return strategy.lightning_module.losses(batch)


def import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError:
        raise ConfigError("ZeRO needs the package deepspeed", key="trainer.strategy", got="vdm.strategies.zero.Zero",
                          allowed="ddp, fsdp", remedy="pip install -e .[deepspeed]") from None  # fmt: skip
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled, for half a minute
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def refuse_whole_matrices(optimizer: Optimizer) -> None:
    if type(optimizer).__name__ == "Muon":
        remedy = "use torch.optim.AdamW, or trainer=ddp or trainer=fsdp, which keep matrices"
        raise ConfigError("ZeRO cuts matrices into pieces, and Muon needs whole ones", key="stage.optimizer._target_",
                          got=type(optimizer).__name__, remedy=remedy)  # fmt: skip
