"""The bytes that kernels read besides activations, computed from the program: at planning for their sizes, at loading for use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcompiler import arithmetic
from qcompiler.backends.tvm import packing, packing_rows
from qcompiler.backends.tvm.kernels import ConvolutionKernel, NormalizationKernel, PackedKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.plan import Constant, Numbers, Scale, Source
from qcompiler.ir.program import Program

_RESIDUAL_ROLES = ("pre_shift_b", "multiplier_b")


def packed_arrays(kernel: PackedKernel, target: str, constants: Mapping[str, torch.Tensor], group: int = 0) -> tuple[torch.Tensor, ...]:
    """What ``packing`` (for rows ``packing_rows``) makes of constants, a convolution's in the shapes that ``kernels`` documents.

    ``group``: inputs of which each has one of ``factors``; a kernel without groups gets the products.
    """
    if isinstance(kernel, NormalizationKernel):
        arrays = packing_rows.pack(kernel, {role: tensor.numpy() for role, tensor in constants.items()})
        return tuple(torch.from_numpy(array) for array in arrays)
    if group and not kernel.weight_group:
        weight = arithmetic.scale_groups(constants["weight"], constants["factors"], group)
        constants = {role: tensor for role, tensor in constants.items() if role != "factors"} | {"weight": weight}
    shaped = {role: _shaped(kernel, role, tensor).numpy() for role, tensor in constants.items()}
    return tuple(torch.from_numpy(array) for array in packing.pack(kernel, target, shaped))


def _shaped(kernel: ConvolutionKernel, role: str, tensor: torch.Tensor) -> torch.Tensor:
    channels = kernel.output.channels
    if role == "weight":
        return tensor.reshape(channels, -1, *kernel.kernel)
    if role in ("bias", "table"):
        return tensor.reshape(-1)
    if role == "factors":
        return tensor
    per_channel = isinstance(kernel.epilogue, Requantization | ResidualAdd) and kernel.epilogue.per_channel
    return tensor.reshape(-1).expand(channels).contiguous() if per_channel and role not in _RESIDUAL_ROLES else tensor.reshape(1)


def parameter_reader(program: Program, target: str) -> Callable[[Source], torch.Tensor]:
    """A function that gives the tensor of each source; a kernel's constants are packed once for all its arrays."""
    packed: dict[tuple[PackedKernel, tuple[tuple[str, str], ...], int], tuple[torch.Tensor, ...]] = {}

    def read(source: Source) -> torch.Tensor:
        if isinstance(source, Constant):
            return _buffer(program, source.buffer)
        if isinstance(source, Numbers):
            return torch.tensor(source.values, dtype=torch.int64)
        if isinstance(source, Scale):
            return _border(program, source)
        key = (source.kernel, source.constants, source.group)
        if key not in packed:
            constants = {role: _buffer(program, name) for role, name in source.constants}
            packed[key] = packed_arrays(source.kernel, target, constants, source.group)
        return packed[key][source.index]

    return read


def _buffer(program: Program, name: str) -> torch.Tensor:
    tensor = getattr(program.graph_module, name)
    assert isinstance(tensor, torch.Tensor)  # plans name buffers of the program they were made from
    return tensor.detach()


def _border(program: Program, source: Scale) -> torch.Tensor:
    """Exactly the float32 numbers that ``arithmetic.quantize`` and ``dequantize`` use."""
    kind = (program.inputs if source.port == "input" else program.outputs)[source.index].quantized
    assert kind is not None  # plans scale quantized ports only
    scale = torch.tensor(kind.scale, dtype=torch.float32)
    if source.role == "zero_point":
        return torch.tensor(kind.zero_point, dtype=torch.int32).expand_as(scale).contiguous()
    return scale.reciprocal() if source.role == "reciprocal" else scale
