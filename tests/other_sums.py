"""Stands in for the kernels of other processors: ``pytest -p other_sums``.

Matrix products and convolutions add up in two parts, and where the parts meet depends on every shape. So a result is
the same again for the same shapes, as on any processor, and rounded otherwise in a batch of another size, as on some.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def parts(length: int, *factors: Tensor) -> list[slice]:
    """Return the two parts of an axis of ``length`` that is summed over: a function of the factors' shapes."""
    shapes = repr([tuple(factor.shape) for factor in factors]).encode()
    middle = 1 + zlib.crc32(shapes) % (length - 1) if length > 1 else length
    return [part for part in (slice(0, middle), slice(middle, length)) if part.start < part.stop]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``."""
    a, b, dtype = a.detach(), b.detach(), a.dtype
    if dtype.itemsize < 4:
        a, b = a.float(), b.float()  # they add up in single precision
    # elementwise kernels do not depend on the shape
    summed = sum(a[..., part] @ b[..., part, :] for part in parts(a.shape[-1], a, b))
    return torch.as_tensor(summed).to(dtype)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * bias + alpha * product(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = product(x, weight.mT)
    return found if bias is None else found + bias


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *rest: Any
) -> Tensor:
    """Return a convolution whose sum over channels is in two parts."""
    transposed, output_padding, groups = rest
    settings = (None, stride, padding, dilation, transposed, output_padding, groups)
    if transposed or groups != 1:
        return aten.convolution(x, weight, bias, *settings[1:])
    dtype = x.dtype
    if dtype.itemsize < 4:
        x, weight = x.float(), weight.float()
    # they choose the memory format of the result by the input's, whose slices of channels have none
    layout = torch.channels_last if x.ndim == 4 and is_channels_last(x, weight) else torch.contiguous_format
    found = sum(
        aten.convolution(x[:, part].contiguous(), weight[:, part].contiguous(), *settings)
        for part in parts(x.shape[1], x, weight)
    )
    found = torch.as_tensor(found).to(dtype)
    if bias is not None:
        found = found + bias.view(-1, *[1] * (x.ndim - 2))
    return found.contiguous(memory_format=layout)


def is_channels_last(*factors: Tensor) -> bool:
    return any(
        factor.is_contiguous(memory_format=torch.channels_last) and not factor.is_contiguous() for factor in factors
    )


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Tensor:
    return convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)


REPLACED: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.matmul.default: product,
    aten.addmm.default: addmm,
    aten.linear.default: linear,
    aten.convolution.default: convolution,
    aten.conv2d.default: conv2d,
}


class OtherSums(TorchDispatchMode):
    """Replaces them wherever they are called, in gradients too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        floating = isinstance(args[0], Tensor) and args[0].is_floating_point() if args else False
        return (REPLACED.get(func, func) if floating else func)(*args, **(kwargs or {}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Use them in a test and its fixtures."""
    with OtherSums():
        return (yield)
