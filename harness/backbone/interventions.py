"""Changes to a frozen backbone at test time: registers added, dropped, or replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness import interventions
from harness.backbone.layout import TokenLayout
from harness.backbone.weights import digest
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.interventions import Rule

if TYPE_CHECKING:
    from harness.registry import ModelEntry

DRAWS = 64
"""Draws of noise, among which a picture finds its own."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """What is changed, with all that it reads.

    ``added`` test-time registers stand behind the model's own. Of every (layer, neuron) of
    ``neurons``, at the input of the MLP's second linear, they get the value of largest magnitude,
    sign kept, over all tokens (``shared-scalar``: over all neurons of the layer too); patches get
    0, and class and trained registers are left alone (Jiang et al., algorithm 2).

    ``states [S, depth, R, D]``: what the trained registers hold after each block. Which of the S a
    picture gets is told by its own pixels, so that it does not depend on its batch.
    """

    added: int = 0
    neurons: tuple[tuple[int, int], ...] = ()
    rule: Rule = "shared-scalar"
    dropped: bool = False
    states: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is changed."""
        return not (self.added or self.neurons or self.dropped or self.states is not None)

    def layout(self, own: TokenLayout) -> TokenLayout:
        """The layout of a model whose own is ``own``."""
        return replace(own, registers=self.kept(own) + self.added)

    def kept(self, own: TokenLayout) -> int:
        """How many of the model's own registers run."""
        return 0 if self.dropped else own.registers

    def digest(self, weights: str) -> str:
        """sha256 of what runs, given the digest of the weights."""
        states = None
        if self.states is not None:
            states = hashlib.sha256(self.states.cpu().contiguous().numpy().data).hexdigest()
        facts = {
            "weights": weights,
            "added": self.added,
            "neurons": sorted(self.neurons),
            "rule": self.rule,
            "dropped": self.dropped,
            "states": states,
        }
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    def install(self, name: str, module: nn.Module, own: TokenLayout) -> Callable[[], None]:
        """Change the timm ``module`` of model ``name``; gives what undoes it.

        Raises ``HarnessError`` for a layer or neuron that it does not have.
        """
        model: Any = module
        layout = self.layout(own)
        undo = ExitStack()
        if self.plain:
            return undo.close

        def put(owner: Any, count: int) -> None:
            undo.callback(setattr, owner, "num_prefix_tokens", owner.num_prefix_tokens)
            owner.num_prefix_tokens = count

        put(model, own.classes + self.kept(own))  # pooling reads the model's own tokens alone
        for block in model.blocks:
            if hasattr(block.attn, "num_prefix_tokens"):  # what a rotary position does not turn
                put(block.attn, layout.extra)
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in self.neurons:
            by_layer.setdefault(layer, []).append(neuron)
        for layer, neurons in by_layer.items():
            if layer >= len(model.blocks):
                undo.close()
                raise HarnessError(f"model {name!r}: has no layer {layer} of a register neuron")
            linear = second_linear(name, model.blocks[layer])
            if max(neurons) >= linear.in_features:
                undo.close()
                raise HarnessError(
                    f"model {name!r}: layer {layer} has {linear.in_features} neurons, and no "
                    f"register neuron {max(neurons)}"
                )
            chosen = torch.tensor(sorted(neurons), device=linear.weight.device)
            places = layout.registers_from(self.kept(own), self.added)
            shift = _shift(chosen, places, layout.patch_slice, self.rule)
            undo.callback(linear.register_forward_pre_hook(shift).remove)
        return undo.close

    def on(self, device: torch.device) -> Intervention:
        """The same, with what it reads at hand."""
        return self if self.states is None else replace(self, states=self.states.to(device))

    def states_of(self, pixels: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` -> the states ``[B, depth, R, D]`` that theirs are replaced by.

        The bits of all pixels are added up: a sum of integers, the same in every order.
        """
        assert self.states is not None
        bits = pixels.float().contiguous().view(torch.int32).flatten(1).sum(1)
        return self.states[bits % len(self.states)]


def second_linear(name: str, block: Any) -> nn.Linear:
    """The linear that brings the neurons of a block's MLP back to the width of its tokens.

    Its inputs are the neurons: after activation and gate (and the norm that EVA-02 has there).
    Raises ``HarnessError`` for a block of model ``name`` that has none.
    """
    linear = getattr(getattr(block, "mlp", None), "fc2", None)
    if not isinstance(linear, nn.Linear):
        raise HarnessError(
            f"model {name!r}: blocks of type {type(block).__name__} have no MLP with a second "
            f"linear, so no register neurons"
        )
    return linear


def _shift(
    chosen: Tensor, registers: slice, patches: slice, rule: Rule
) -> Callable[[nn.Module, tuple[Tensor]], None]:
    over = (1, 2) if rule == "shared-scalar" else (1,)

    def shift(_: nn.Module, inputs: tuple[Tensor]) -> None:
        # In place: the neurons of a block are read by its second linear and by nothing else.
        (neurons,) = inputs
        values = neurons[..., chosen]
        highest, lowest = values.amax(over, keepdim=True), values.amin(over, keepdim=True)
        largest = torch.where(highest > -lowest, highest, lowest)
        neurons[:, patches].index_fill_(2, chosen, 0)
        carried = neurons[:, registers]
        carried.index_copy_(2, chosen, largest.expand(-1, carried.shape[1], len(chosen)))

    return shift


def resolve(entry: ModelEntry, module: nn.Module, own: TokenLayout) -> Intervention | None:
    """What an entry says of changes, with the files that it names; None where it says nothing.

    ``module`` has its weights. Raises ``HarnessError`` for a file that is missing, wrong, or that
    belongs to other weights.
    """
    if not entry.interventions:
        return None
    interventions.check_files(entry)
    added, replaced = entry.test_time_registers, entry.replace_registers
    found = Intervention(dropped=entry.drop_registers)
    if added is not None and added.searched:
        raise HarnessError(
            f"model {entry.name!r}: says `neurons: auto`, and only a run has a data set to find "
            f"them on; `harness registers find {entry.name} --data DATASET --out FILE` makes a file"
        )
    if added is not None and added.file is not None:
        file = interventions.read_neurons(added.file)
        _check_weights(entry, added.file, file.weights_digest, module)
        found = replace(found, added=added.count, neurons=tuple(file.neurons), rule=added.rule)
    if replaced is not None:
        model: Any = module
        shape = len(model.blocks), own.registers, model.embed_dim
        if replaced.by == "zero":
            return replace(found, states=torch.zeros(1, *shape))
        assert replaced.states is not None
        states = RegisterStates.read(replaced.states)
        _check_weights(entry, replaced.states, states.weights_digest, module)
        if states.mean.shape != shape:
            raise HarnessError(
                f"{replaced.states}: states of {list(states.mean.shape)}, model {entry.name!r} "
                f"has {list(shape)} (layers, registers, width)"
            )
        found = replace(found, states=states.table(replaced.by, replaced.seed))
    return found


def _check_weights(entry: ModelEntry, path: Path, wanted: str, module: nn.Module) -> None:
    ours = digest(module)
    if wanted != ours:
        raise HarnessError(
            f"{path}: belongs to other weights ({wanted[:12]}…) than those of model "
            f"{entry.name!r} here ({ours[:12]}…)"
        )


@dataclass(frozen=True, eq=False)
class RegisterStates:
    """What trained registers hold after every block: ``mean`` and ``sd [depth, R, D]`` over all
    pictures, and ``examples [S, depth, R, D]`` of some of them."""

    mean: Tensor
    sd: Tensor
    examples: Tensor
    weights_digest: str
    pictures: str
    """Data set, split, fingerprint and number of pictures, as JSON."""

    def table(self, by: str, seed: int) -> Tensor:
        """What registers are replaced by, ``[S, depth, R, D]``."""
        if by == "mean":
            return self.mean[None]
        if by == "shuffle":
            return self.examples
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(DRAWS, *self.mean.shape, generator=generator)
        return self.mean + self.sd * noise

    @property
    def metadata(self) -> dict[str, str]:
        # One key: safetensors writes several in an order of the moment.
        facts = {"format": 1, "weights_digest": self.weights_digest, "pictures": self.pictures}
        return {"register_states": canonical_json(facts).decode()}

    @classmethod
    def read(cls, path: Path) -> RegisterStates:
        """Raises ``HarnessError`` for a file that is missing or is no file of register states."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["register_states"])
                tensors = {key: file.get_tensor(key) for key in ("mean", "sd", "examples")}
            found = cls(
                **tensors, weights_digest=facts["weights_digest"], pictures=facts["pictures"]
            )
        except FileNotFoundError:
            raise HarnessError(f"{path}: no such file of register states") from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            raise HarnessError(
                f"{path}: no file of register states; `harness registers states` writes them"
            ) from None
        return found
