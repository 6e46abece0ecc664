"""Metrics against networks for which the numbers are known, and against ``quantize`` itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import CalibrationError, PassError, UnknownNameError
from qcompiler.passes.allocate.items import find_items, with_bits
from qcompiler.passes.allocate.measure import measure_together
from qcompiler.passes.allocate.metrics import hessian_trace
from qcompiler.passes.allocate.metrics.base import make_metric
from qcompiler.passes.allocate.metrics.kl_divergence import KlDivergence
from qcompiler.passes.allocate.metrics.loss import MeasuredLoss
from qcompiler.passes.allocate.metrics.sqnr_output import SqnrOutput
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.registry import metric_names
from qcompiler.sensitivity import Item

WEIGHT, INPUT = Item("linear", "weight"), Item("input_1", "activation")
MIN_MAX = Quantize(observer="min-max", weight_observer="min-max", per_channel=False)


def linear(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def rounding_errors(case: Any, bits: int) -> tuple[Tensor, Tensor]:
    """Q(w) - w and Q(x) - x of a single linear layer, by the pass ``quantize``."""
    program = PassManager([replace(MIN_MAX, w=bits, a=bits)]).run(case.program, case.data)
    nodes = {node.name: node for node in program.graph.nodes}
    weight, kind = nodes["linear"].args[1], nodes["input_1"].meta["quantized"]
    integers = program.graph_module.get_buffer(str(weight.args[0].target))
    rounded = torch.ops.qc.dequantize(integers, *weight.args[1:])
    values = torch.ops.qc.dequantize(torch.ops.qc.quantize(case.inputs, *kind.arguments), *kind.arguments)
    errors = rounded - weight_of(case), values - case.inputs
    assert all(bool(error.any()) for error in errors), "nothing is lost: the test would compare zeros"
    return errors


def weight_of(case: Any) -> Tensor:
    """Of a single linear layer."""
    (layer,) = [node for node in case.program.graph.nodes if node.name == "linear"]
    weight: Tensor = case.program.graph_module.get_buffer(str(layer.args[1].target))
    return weight


class TestQuadraticLoss:
    """y = W x with the loss |y - t|^2 / 2: Hessians are I (x) x x' with respect to W and W'W with respect to x."""

    WEIGHT = torch.diag(torch.tensor([1.0, -2.0, 0.5]))  # so that v' W W' v is the trace for every v of signs
    INPUTS = torch.tensor([[0.3, -1.0, 2.0]])  # one sample: |v x'|^2 = |v|^2 |x|^2

    def case(self, make: Any) -> Any:
        return make(linear(self.WEIGHT), self.INPUTS)

    @pytest.mark.parametrize("labels", [None, torch.tensor([[0.1, 0.2, 0.3]])])
    def test_hessian_trace(self, labels: Tensor | None, make: Any) -> None:
        case = self.case(make)
        table = case.measure("hessian-trace{probes=3}", quantize=MIN_MAX, bits=(3, 8), labels=labels, loss="squared-error")
        for bits in (3, 8):
            weight_error, input_error = rounding_errors(case, bits)
            trace = 3 * float(self.INPUTS.square().sum())
            if labels is None:  # with labels v' H v is |V x|^2, the trace in the mean alone
                assert table.rows[WEIGHT, bits] == pytest.approx(trace / 9 * float(weight_error.square().sum()), rel=1e-5)
            expected = float(self.WEIGHT.square().sum()) / 3 * float(input_error.square().sum())
            assert table.rows[INPUT, bits] == pytest.approx(expected, rel=1e-5)

    def test_hutchinson_with_labels_comes_near_the_trace(self, make: Any) -> None:
        """v' H v = sum_o (v_o' x)^2 has the mean 3 |x|^2 and, for three rows, the variance 3 * 2 (|x|^4 - sum x^4)."""
        case = self.case(make)
        labels = torch.zeros(1, 3)
        table = case.measure("hessian-trace{probes=400}", quantize=MIN_MAX, bits=(4,), labels=labels, loss="squared-error")
        weight_error, _ = rounding_errors(case, 4)
        found = table.rows[WEIGHT, 4] * 9 / float(weight_error.square().sum())
        power, fourth = float(self.INPUTS.square().sum()), float(self.INPUTS.pow(4).sum())
        assert abs(found - 3 * power) < 4 * (6 * (power**2 - fourth) / 400) ** 0.5

    def test_first_order_metrics(self, make: Any) -> None:
        case = make(linear(torch.tensor([[0.5, -1.0], [2.0, 0.25]])), torch.tensor([[0.3, -1.0], [1.5, 0.7], [-2.0, 0.1]]))
        labels = torch.tensor([[0.1, 0.2], [-1.0, 0.5], [0.0, 3.0]])
        tables = {
            name: case.measure(name, quantize=MIN_MAX, bits=(3,), labels=labels, loss="squared-error") for name in ("fisher", "taylor")
        }
        weight = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
        residue = case.inputs @ weight.T - labels
        weight_error, input_error = rounding_errors(case, 3)
        products = {
            WEIGHT: residue[:, :, None] * case.inputs[:, None, :] * weight_error,
            INPUT: (residue @ weight) * input_error,
        }
        for item, product in products.items():
            product = product.flatten(1)
            assert tables["fisher"].rows[item, 3] == pytest.approx(float(product.square().sum(1).mean()) / 2, rel=1e-4)
            assert tables["taylor"].rows[item, 3] == pytest.approx(float(product.sum(1).square().mean()), rel=1e-4)

    def test_a_quadratic_loss_increases_by_half_the_curvature(self, make: Any) -> None:
        """``loss`` against the own output of y = W x is exactly |dW x|^2 / 2."""
        case = make(linear(torch.randn(4, 3, generator=torch.Generator().manual_seed(1))), torch.randn(6, 3))
        table = case.measure("loss", quantize=MIN_MAX, bits=(3,), loss="squared-error")
        weight_error, input_error = rounding_errors(case, 3)
        weight = weight_of(case)
        assert table.rows[WEIGHT, 3] == pytest.approx(float((case.inputs @ weight_error.T).square().sum()) / 12, rel=1e-4)
        assert table.rows[INPUT, 3] == pytest.approx(float((input_error @ weight.T).square().sum()) / 12, rel=1e-4)

    def test_layer_and_statistics(self, make: Any) -> None:
        """Of uncorrelated inputs second moments are all there is: +-1 in every combination."""
        inputs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
        case = make(linear(torch.randn(4, 3, generator=torch.Generator().manual_seed(2))), inputs)
        weight_error, _ = rounding_errors(case, 3)
        weight = weight_of(case)
        expected = float(weight_error.square().sum() / weight.square().sum())
        for metric in ("sqnr-layer", "activation-statistics", "sqnr-output", "perturbation"):
            table = case.measure(metric, quantize=MIN_MAX, bits=(3,))
            assert table.rows[WEIGHT, 3] == pytest.approx(expected, rel=1e-5), metric


def test_the_root_of_the_hessian_of_cross_entropy() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    columns = torch.stack([hessian_trace._root_times(logits, "cross-entropy", torch.eye(5)[i].expand(2, 5)) for i in range(5)], -1)
    p = logits.softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(columns @ columns.transpose(1, 2), expected)


def test_relevance_is_handed_on_whole(make: Any) -> None:
    """Without biases and with positive weights and inputs all relevance is positive: every layer and value has that of the decision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False))
    for parameter in model.parameters():
        parameter.data.abs_()
    case = make(model, torch.rand(5, 2, 4, 4))
    relevance, size = (case.measure(metric, bits=(4,)).rows for metric in ("relevance", "perturbation"))
    for row, value in relevance.items():
        assert value == pytest.approx(size[row], rel=1e-4), row


def sums(rows: Mapping[tuple[Item, int], float], kind: str) -> list[float]:
    widths = sorted({bits for _, bits in rows})
    return [sum(value for (item, bits), value in rows.items() if item.kind == kind and bits == width) for width in widths]


@pytest.mark.parametrize("name", metric_names())
@pytest.mark.parametrize("network", ["residual", "attention"])
def test_fewer_bits_cost_more(name: str, network: str, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(network)
    table = case.measure(name, bits=(2, 4, 8), samples=6)
    assert set(table.items) == set(find_items(case.program).candidates) and table.metric == name
    for kind in ("weight", "activation"):
        two, four, eight = sums(table.rows, kind)
        assert two > 2 * four > 8 * eight > 0, kind  # a step is 4 and 16 times as wide
    assert network == "attention" or table == case.measure(name, bits=(2, 4, 8), samples=6), "it is not the same twice"


@pytest.mark.parametrize(("network", "weight_group"), [("residual", 0), ("residual", 4), ("attention", 0)])
def test_an_allocation_is_what_quantize_makes_of_it(network: str, weight_group: int, request: pytest.FixtureRequest) -> None:
    """All items rounded at once give the very floats of the QDQ program; the stream of attention, which is no item, has 8 bits there."""
    case = request.getfixturevalue(network)
    options = Quantize(residual_bits=8, weight_group=weight_group)
    items = find_items(case.program, options)
    generator = torch.Generator().manual_seed(3)
    chosen = {item: int(torch.randint(2, 9, (), generator=generator)) for item in items.candidates}
    quantized = PassManager([options]).run(with_bits(case.program, chosen), case.data)
    (wanted,), (own,) = quantized.run(case.inputs), case.program.run(case.inputs)
    noise = float((wanted - own).double().square().sum() / own.double().square().sum())
    found = measure_together(case.program, SqnrOutput(), case.data, chosen, quantize=options)
    assert found == pytest.approx(noise, rel=1e-6 if network == "residual" else 0.2)


def test_the_rest_at_8_bits_costs_nothing_by_itself(residual: Any) -> None:
    table = residual.measure("sqnr-output{rest=8-bit}", bits=(4, 8))
    assert all(table.rows[item, 8] == pytest.approx(0.0, abs=1e-9) for item in table.items)
    assert all(table.rows[item, 4] > 0.0 for item in table.items)


def test_the_rest_has_the_bits_that_options_state(attention: Any) -> None:
    """Few bits of probabilities change what an item adds; those with unequal steps stay in float, which is near 8 bits."""
    tables = [
        attention.measure("sqnr-output{rest=8-bit}", bits=(4,), quantize=Quantize(**options))
        for options in ({"probability_bits": 2}, {"probability_bits": 2, "probability_quantizer": "log2"}, {"probability_bits": 8})
    ]
    few, coded, eight = (sum(table.rows.values()) for table in tables)
    assert abs(coded - eight) < 0.05 * eight < abs(few - eight)


def test_labels_are_what_the_loss_is_taken_against(residual: Any) -> None:
    own = residual.program.run(residual.inputs)[0].argmax(-1)
    other = residual.measure("loss", bits=(2,), labels=(own + 1) % 5)
    same = residual.measure("loss", bits=(2,), labels=own)
    assert other.rows != same.rows and other.settings["labels"] == "given"
    assert residual.measure("kl-divergence", bits=(2,), labels=own).settings["labels"] == "own output"
    together = {item: 2 for item in same.items}
    assert measure_together(residual.program, KlDivergence(), residual.data, together) == pytest.approx(
        measure_together(residual.program, MeasuredLoss(), residual.data, together), rel=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.long), "there are 3 labels for 12 samples or more"),
        (torch.zeros(12), r"labels of shape \[12\] .* give a class number for each"),
        (torch.full((12,), 7), "labels from 7 to 7 for 5 classes: number classes from 0"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str, residual: Any) -> None:
    with pytest.raises(CalibrationError, match=message):
        residual.measure("loss", bits=(4,), labels=labels)


def test_a_gradient_that_is_zero_is_told(residual: Any) -> None:
    with pytest.raises(CalibrationError, match="piece 0: the squared error to the float program's own output has no first-order term"):
        residual.measure("taylor", bits=(4,), loss="squared-error")


def test_metrics_by_name_and_options() -> None:
    assert make_metric("hessian-trace{probes=3}") == hessian_trace.HessianTrace(3)
    with pytest.raises(UnknownNameError, match="unknown metric 'hesian': did you mean 'hessian-trace'"):
        make_metric("hesian")
    with pytest.raises(UnknownNameError, match="unknown option of metric 'fisher': 'probes'"):
        make_metric("fisher{probes=3}")
    with pytest.raises(PassError, match="metric 'hessian-trace', option 'probes': expected an integer, got 'many'"):
        make_metric("hessian-trace{probes=many}")
    with pytest.raises(CalibrationError, match="metric 'hessian-trace': probes must be at least 1"):
        make_metric("hessian-trace{probes=0}")
    with pytest.raises(PassError, match="names 2 metrics: give one"):
        make_metric("fisher,taylor")


@pytest.mark.parametrize("name", ["fisher", "relevance", "sqnr-output"])
def test_a_masked_text_encoder(name: str) -> None:
    """Token numbers have no gradients, and masked scores are minus infinity: every item is reached all the same."""
    from models.bert import BertConfiguration, SentenceEncoder

    torch.manual_seed(0)
    model = SentenceEncoder(BertConfiguration(vocabulary=40, width=16, layers=1, heads=2, hidden=32, positions=8)).eval()
    ids, mask = torch.randint(0, 40, (4, 6)), torch.ones(4, 6, dtype=torch.long)
    mask[1:, 4:] = 0
    table = qc.sensitivity(qc.capture(model, (ids, mask)), [(ids, mask)], name, (3, 8), loss="squared-error")
    assert all(table.rows[item, 3] > table.rows[item, 8] > 0.0 for item in table.items)
