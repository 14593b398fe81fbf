"""Transforms between an image and points anywhere in k-space, without scale: finufft on the CPU, cufinufft on a GPU.

What depends on the points alone (their order, a fine grid, its FFT plan) is prepared once and used for any number of
transforms.

Reference: Barnett 2019, doi 10.1137/18M120885X; Shih 2021 (GPU), doi 10.1109/IPDPSW52791.2021.00105.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Protocol

import finufft
import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor

from pipelines.errors import ReconstructionError

ACCURACY = 1e-5
"""Relative to the exact sum. 230 x 230, 64 spokes, 8 coils, one core: asked for 1e-3, 1e-4, 1e-5, 1e-6 the error is
1.4e-3, 7e-5, 2e-5, 1e-5 in 8, 10, 10.5, 17 ms. Single precision ends there."""

UPSAMPLING = 1.25
"""Fine grid over image grid on the CPU; 2 takes 1.5 times as long at this accuracy."""


class Points:
    """The samples of one frame, transformed without scale: `sum x exp(-2 pi i k r)` and its adjoint.

    Args:
        positions: x before y, in cycles a pixel.
        measured: samples that exist.
        shape: y and x of the image.
    """

    def __init__(
        self,
        positions: Float32[Tensor, "readouts samples 2"],
        measured: Bool[Tensor, "readouts samples"],
        shape: tuple[int, int],
    ) -> None:
        self._shape = shape
        self._n = positions[..., 0].numel()
        self._kept: Tensor | None = None
        flat = positions.reshape(-1, 2)
        if not bool(measured.all()):
            self._kept = torch.nonzero(measured.flatten())[:, 0]
            flat = flat[self._kept]
        radians = 2 * math.pi * flat
        self._x, self._y = radians[:, 0].contiguous(), radians[:, 1].contiguous()
        self._plans: dict[int, _Plan] = {}

    def samples(self, images: Complex64[Tensor, "n y x"]) -> Complex64[Tensor, "n samples"]:
        """Samples of some images; zero where not measured."""
        if len(self._x) == 0:
            return images.new_zeros((images.shape[0], self._n))
        values = self._plan(images).samples(images.contiguous())
        if self._kept is None:
            return values
        full = values.new_zeros((values.shape[0], self._n))
        full[:, self._kept] = values
        return full

    def image(self, samples: Complex64[Tensor, "n samples"]) -> Complex64[Tensor, "n y x"]:
        """The adjoint of `samples`."""
        if len(self._x) == 0:
            return samples.new_zeros((samples.shape[0], *self._shape))
        values = samples if self._kept is None else samples[:, self._kept]
        return self._plan(samples).image(values.contiguous())

    def _plan(self, like: Tensor) -> _Plan:
        """The plan for as many transforms as `like` has, on its device."""
        n_transforms = like.shape[0]
        plan = self._plans.get(n_transforms)
        if plan is None:
            make = _CpuPlan if like.device.type == "cpu" else _GpuPlan
            plan = self._plans[n_transforms] = make(self._y, self._x, self._shape, n_transforms)
        return plan


class _Plan(Protocol):
    """Transforms of a fixed number of images."""

    def samples(self, images: Tensor) -> Tensor: ...

    def image(self, samples: Tensor) -> Tensor: ...


class _CpuPlan:
    """finufft, with as many threads as torch has."""

    def __init__(self, y: Tensor, x: Tensor, shape: tuple[int, int], n_transforms: int) -> None:
        self._shape = shape
        self._plan: Any = finufft.Plan(
            2,
            shape,
            n_transforms,
            eps=ACCURACY,
            isign=-1,
            dtype="complex64",
            nthreads=torch.get_num_threads(),
            upsampfac=UPSAMPLING,
            showwarn=0,  # it says that its kernel ends where single precision does
        )
        self._plan.setpts(y.numpy(), x.numpy())
        self._n = len(y)

    def samples(self, images: Tensor) -> Tensor:
        out = images.new_empty((images.shape[0], self._n))
        self._plan.execute(_squeezed(images).numpy(), out=_squeezed(out).numpy())
        return out

    def image(self, samples: Tensor) -> Tensor:
        out = samples.new_empty((samples.shape[0], *self._shape))
        self._plan.execute_adjoint(_squeezed(samples).numpy(), out=_squeezed(out).numpy())
        return out


class _GpuPlan:
    """cufinufft on the current stream of the device; imported only here, so that it is needed on a GPU only."""

    def __init__(self, y: Tensor, x: Tensor, shape: tuple[int, int], n_transforms: int) -> None:
        try:
            cufinufft: Any = import_module("cufinufft")
        except ImportError as error:
            raise ReconstructionError(
                "non-Cartesian reconstruction on a GPU needs cufinufft (extra `gpu`), which is not installed"
            ) from error
        self._shape = shape
        self._points = (y, x)
        options = {"gpu_device_id": y.device.index or 0, "gpu_stream": torch.cuda.current_stream(y.device).cuda_stream}
        self._forward, self._adjoint = (
            cufinufft.Plan(kind, shape, n_transforms, eps=ACCURACY, isign=sign, dtype="complex64", **options)
            for kind, sign in ((2, -1), (1, 1))
        )
        self._forward.setpts(y, x)
        self._adjoint.setpts(y, x)

    def samples(self, images: Tensor) -> Tensor:
        out = images.new_empty((images.shape[0], len(self._points[0])))
        self._forward.execute(_squeezed(images), out=_squeezed(out))
        return out

    def image(self, samples: Tensor) -> Tensor:
        out = samples.new_empty((samples.shape[0], *self._shape))
        self._adjoint.execute(_squeezed(samples), out=_squeezed(out))
        return out


def _squeezed(tensor: Tensor) -> Tensor:
    """A view without the first axis where it is 1: both libraries want it so."""
    return tensor[0] if tensor.shape[0] == 1 else tensor
