"""``merge-requantize``: two requantizations in a row become one.

With factors M1, M2 and limits [l1, h1], [l2, h2]::

    clamp(R2(clamp(R1(x - z0) + z1, l1, h1) - z1) + z2, l2, h2)   ->   clamp(R(x - z0) + z2, max(l2, y(l1)), min(h2, y(h1)))

where R rounds the product with M1 M2 and y(v) is what the second op makes of v: an intermediate clamp (an activation) is kept, since the
second op is monotone. One rounding is left of two: the result is nearer to x M1 M2, and differs from before by at most
(1 + M2) / 2 of an output step, plus the error of the dyadic multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.passes.optimize.integer_rewrite import Chain, IntegerRewrite, chain, replace_integers
from qcompiler.pipeline.contract import Lossy
from qcompiler.pipeline.rewrite import Site

_qc = torch.ops.qc
_REQUANTIZE: frozenset[edit.Target] = frozenset({_qc.requantize.default})


@dataclass(frozen=True)
class MergeRequantize(IntegerRewrite[Chain]):
    """Merge consecutive requantizations where the product of their factors is proven to be representable.

    The form exact64 stands for the rounding of another tool and is left as it is.
    """

    name: ClassVar = "merge-requantize"
    promise: ClassVar = Lossy()

    requantize: Literal["auto", "high", "narrow"] = "auto"
    narrow_tolerance: float = 0.02

    def match(self, node: fx.Node) -> Chain | None:
        return chain(node, _REQUANTIZE, _REQUANTIZE)

    def check(self, match: Chain) -> str | None:
        if "exact64" in (edit.argument(match.first, "form"), edit.argument(match.second, "form")):
            return "the form exact64 keeps every rounding of the tool that quantized the model"
        if edit.argument(match.first, "zero_point") != edit.argument(match.second, "input_zero_point"):
            return "the second does not read the zero point that the first writes"
        try:
            self._merged(match)
        except VerificationError as error:
            return str(error)
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Chain) -> str:
        site = Site(graph_module, match.second, self.name)
        dyadic = self._merged(match)
        low, high = _limits(match)
        parameters = [site.constant(f"{match.second.name}_{name}", getattr(dyadic, name)) for name in arithmetic.DYADIC_PARAMETERS]
        kept = [edit.argument(match.second, name) for name in ("zero_point", "bits", "signed")]
        zero_point = edit.argument(match.first, "input_zero_point")
        merged = site.call(_qc.requantize.default, match.first.args[0], *parameters, zero_point, kept[0], low, high, dyadic.form, *kept[1:])
        replace_integers(site, merged)
        return "one rounding in the place of two"

    def _merged(self, match: Chain) -> arithmetic.Dyadic:
        factor = _dyadic(match.first).factor() * _dyadic(match.second).factor()
        source = match.first.args[0]
        assert isinstance(source, fx.Node)  # the op's tensor
        centred = source.meta["quantized"].range if "quantized" in source.meta else None
        if centred is None:
            raise VerificationError(f"no range of '{source.name}' is noted")
        offset, zero_point = edit.argument(match.first, "input_zero_point"), edit.argument(match.second, "zero_point")
        bound = max(abs(centred.low - offset), abs(centred.high - offset))
        low, high = _limits(match)
        reach = max(high - zero_point, zero_point - low, 1)
        return arithmetic.choose(factor, bound, self.requantize, self.narrow_tolerance, reach)


def _dyadic(node: fx.Node) -> arithmetic.Dyadic:
    constants = [edit.constant_value(edit.argument(node, name)) for name in arithmetic.DYADIC_PARAMETERS]
    pre_shift, multiplier, shift = (tensor for tensor in constants if tensor is not None)
    return arithmetic.Dyadic(edit.argument(node, "form"), pre_shift, multiplier, shift)


def _limits(match: Chain) -> tuple[int, int]:
    """The limits of the second op, and those of the first as the second maps them, where they are the tighter ones."""
    ends = torch.tensor([edit.argument(match.first, "low"), edit.argument(match.first, "high")], dtype=match.first.meta["val"].dtype)
    arguments = {parameter.name: edit.argument(match.second, parameter.name) for parameter in _qc.requantize.default._schema.arguments[1:]}
    constants = {name: edit.constant_value(arguments[name]) for name in arithmetic.DYADIC_PARAMETERS}
    mapped = _qc.requantize.default(ends.reshape(2, *[1] * 4), **{**arguments, **constants})
    return int(mapped[0].min()), int(mapped[1].max())
