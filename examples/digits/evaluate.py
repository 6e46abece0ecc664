"""Float against integer accuracy of the digits networks on the 397 held-out digits, and whether reference and machine code agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

import qcompiler as qc
from digits_models import NETWORKS, TEST_IMAGES, Digits, load_data, load_network
from qcompiler.errors import QCompilerError

CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class Evaluation:
    """What came of one network. ``obstacle`` is the compiler's own message where it could not go on; what comes after it is None."""

    float_accuracy: float
    integer_accuracy: float | None = None
    agreeing: int | None = None
    exact: bool | None = None
    obstacle: str | None = None

    def __str__(self) -> str:
        parts = [f"float {self.float_accuracy:.2%}"]
        if self.integer_accuracy is not None:
            parts += [f"integer {self.integer_accuracy:.2%}", f"{self.agreeing} of {TEST_IMAGES} predictions agree"]
        if self.exact is not None:
            parts.append(f"compiled code equals the reference: {'yes' if self.exact else 'NO'}")
        if self.obstacle is not None:
            parts.append(f"then: {self.obstacle}")
        return "; ".join(parts)


def evaluate(network: nn.Module, data: Digits) -> Evaluation:
    """Quantize (predictions of the integer reference), then compile (the same integers from machine code?)."""
    with torch.inference_mode():
        expected = network(data.test_images).argmax(1)
    result = Evaluation(accuracy(expected, data))
    try:
        program = qc.quantize(qc.capture(network, (data.test_images[:2],)), data.train_images[:CALIBRATION_IMAGES].split(1))
        reference = program(data.test_images)
        predicted = reference.argmax(1)
        result = replace(result, integer_accuracy=accuracy(predicted, data), agreeing=int((predicted == expected).sum()))
        return replace(result, exact=torch.equal(qc.compile(program)(data.test_images), reference))
    except QCompilerError as error:
        return replace(result, obstacle=str(error))


def accuracy(predictions: torch.Tensor, data: Digits) -> float:
    """Share of right predictions."""
    return float((predictions == data.test_labels).double().mean())


def main() -> None:
    """Evaluate every network of the example."""
    data = load_data()
    for name in NETWORKS:
        print(f"{name}: {evaluate(load_network(name), data)}", flush=True)


if __name__ == "__main__":
    main()
