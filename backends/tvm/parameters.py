"""The bytes that kernels read besides activations, computed from the program: at planning for their sizes, at loading for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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


def joined_constants(constants: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The constants of a kernel by role, of several layers one behind the other along output channels; those of no channel are equal."""
    by_role: dict[str, list[torch.Tensor]] = {}
    for role, tensor in constants:
        by_role.setdefault(role, []).append(tensor)
    return {role: tensors[0] if len(tensors) == 1 else _joined(role, tensors, by_role["weight"]) for role, tensors in by_role.items()}


def _joined(role: str, tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    if role == "weight":
        return torch.cat(list(tensors))
    if role in ("table", *_RESIDUAL_ROLES):
        return tensors[0]
    return torch.cat([tensor.reshape(-1).expand(weight.shape[0]) for tensor, weight in zip(tensors, weights, strict=True)])


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
            constants = joined_constants((role, _buffer(program, name)) for role, name in source.constants)
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
