"""The digest that says which weights ran."""

from __future__ import annotations

import numpy as np
import torch
from small_models import load, make, redraw
from torch import Tensor, nn

from harness.backbone.weights import digest


def fresh() -> nn.Module:
    module = load(make("vit_small_patch14_dinov2", arguments={"img_size": 70})).module
    redraw(module)
    return module


def test_the_digest_changes_with_any_single_weight() -> None:
    module = fresh()
    digests = {digest(module)}
    parameters = list(module.parameters())
    for parameter in parameters:
        value = parameter.view(-1)[-1].item()
        parameter.view(-1)[-1] = np.nextafter(np.float32(value), np.float32(9)).item()
        digests.add(digest(module))
        parameter.view(-1)[-1] = value
    assert len(digests) == 1 + len(parameters)
    assert digest(module) in digests


def test_the_digest_does_not_depend_on_the_order_of_names_nor_on_memory_layout() -> None:
    one, other = nn.Module(), nn.Module()
    first, second = torch.randn(3, 4), torch.randn(5)
    for module, names in ((one, "ab"), (other, "ba")):
        for name in names:
            module.register_buffer(name, first if name == "a" else second)
    assert list(one.state_dict()) != list(other.state_dict())
    assert digest(one) == digest(other)
    other.register_buffer("a", first.T.contiguous().T)
    assert not other.state_dict()["a"].is_contiguous()
    assert digest(one) == digest(other)


def test_the_digest_tells_names_shapes_and_types_apart() -> None:
    def of(name: str, value: Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, value)
        return digest(module)

    zeros = torch.zeros(2, 6)
    variants = [of("a", zeros), of("b", zeros), of("a", zeros.view(3, 4))]
    variants += [of("a", zeros.int()), of("a", zeros[:0]), of("a", torch.tensor(0.0))]
    assert len(set(variants)) == len(variants)
