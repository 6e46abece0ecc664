"""Float against integer accuracy of the digits networks on the 397 held-out digits, and whether reference and machine code agree."""

from __future__ import annotations

import torch

import qcompiler as qc
from digits_models import NETWORKS, Digits, load_data, load_network
from qcompiler.errors import QCompilerError

CALIBRATION_IMAGES = 200


def evaluate(name: str, data: Digits) -> str:
    """One line of findings; where the compiler cannot lower the network, its own message."""
    network = load_network(name)
    with torch.inference_mode():
        expected = network(data.test_images).argmax(1)
    calibration = data.train_images[:CALIBRATION_IMAGES].split(1)
    try:
        program = qc.quantize(qc.capture(network, (data.test_images[:2],)), calibration)
        module = qc.compile(program)
    except QCompilerError as error:
        return f"{name}: float {accuracy(expected, data)}; not compiled: {error}"
    integer = module(data.test_images)
    equal = torch.equal(integer, program(data.test_images))
    agreement = int((integer.argmax(1) == expected).sum())
    return (
        f"{name}: float {accuracy(expected, data)}, integer {accuracy(integer.argmax(1), data)}; "
        f"{agreement} of {len(expected)} predictions agree; compiled code equals the reference: {'yes' if equal else 'NO'}"
    )


def accuracy(predictions: torch.Tensor, data: Digits) -> str:
    """Share of right predictions, in percent."""
    return f"{(predictions == data.test_labels).double().mean().item():.2%}"


def main() -> None:
    """Evaluate every network of the example."""
    data = load_data()
    for name in NETWORKS:
        print(evaluate(name, data))


if __name__ == "__main__":
    main()
