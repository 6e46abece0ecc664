"""What the tests of rotations share: four kinds of transformers, one pass after the other run over them, the difference of the outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from models.bert import BertConfiguration, SentenceEncoder
from models.llama_block import Llama, LlamaConfiguration
from models.vit import PatchEmbed, VisionTransformer
from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


@dataclass(frozen=True)
class Network:
    """A canonical FLOAT program and inputs for it."""

    program: Program
    inputs: tuple[Tensor, ...]

    @property
    def data(self) -> CalibrationData:
        return CalibrationData([self.inputs], self.program.inputs)

    def after(self, passes: str) -> Program:
        """The program after these passes."""
        return PassManager(parse_pipeline(passes)).run(self.program, self.data)

    def difference(self, after: Program) -> float:
        """max |after - before| / max |before| over the outputs."""
        pairs = zip(self.program.run(*self.inputs), after.run(*self.inputs), strict=True)
        return max(float((b - a).abs().max() / a.abs().max()) for a, b in pairs)

    @staticmethod
    def notes(after: Program) -> str:
        """What the last pass told."""
        return "; ".join(after.history[-1].notes)

    @staticmethod
    def text_of_weights(program: Program) -> str:
        """The constants by their digests, as a dump has them."""
        return "\n".join(line for line in program.text().splitlines() if "= constant" in line and "f32[" in line)

    def noise_ratio(self, after: Program) -> float:
        """Signal to noise of the outputs in dB."""
        return signal_to_noise(list(self.program.run(*self.inputs)), list(after.run(*self.inputs)))


def _network_of(model: nn.Module, *inputs: Tensor) -> Network:
    """The model, captured and canonical."""
    program = PassManager(parse_pipeline("canonicalize")).run(capture(model.eval(), inputs))
    return Network(program, inputs)


def _trained_looking(model: nn.Module, seed: int) -> nn.Module:
    """Norms with scales and offsets of their own, biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "weight" in name else 0.0))
            elif parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@functools.cache
def _vit() -> Network:
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(8, 48), 16, 48, 2, 3, 10)
    nn.init.normal_(model.cls_token, std=0.5)
    nn.init.normal_(model.pos_embed, std=0.5)
    return _network_of(_trained_looking(model, 1), torch.randn(4, 3, 32, 32))


@functools.cache
def _bert() -> Network:
    torch.manual_seed(1)
    model = SentenceEncoder(BertConfiguration(vocabulary=60, width=48, layers=2, heads=3, hidden=96, positions=16))
    mask = torch.ones(4, 12, dtype=torch.int64)
    mask[1, 7:] = mask[3, 3:] = 0
    return _network_of(_trained_looking(model, 2), torch.randint(0, 60, (4, 12)), mask)


@functools.cache
def _llama() -> Network:
    torch.manual_seed(2)
    model = Llama(LlamaConfiguration(vocabulary=50, width=64, layers=2, heads=4, key_heads=2, hidden=96, positions=12))
    return _network_of(_trained_looking(model, 3), torch.randint(0, 50, (4, 12)))


@functools.cache
def _post_norm() -> Network:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(32, 2, 80, batch_first=True, norm_first=False, activation="relu")
    model = nn.Sequential(nn.Linear(20, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 7))
    return _network_of(_trained_looking(model, 4), torch.randn(4, 9, 20))


NETWORKS: dict[str, Callable[[], Network]] = {"vit": _vit, "bert": _bert, "llama": _llama, "post-norm": _post_norm}


@pytest.fixture
def network() -> Callable[[str], Network]:
    """One of ``NETWORKS`` by its name."""
    return lambda name: NETWORKS[name]()


@pytest.fixture
def network_of() -> Callable[..., Network]:
    """A model and its inputs as a ``Network``."""
    return _network_of
