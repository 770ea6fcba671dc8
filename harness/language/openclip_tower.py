"""Text towers of open_clip (extra ``openclip``): its text transformer, its tokenizer, and the
projection of its picture tower. The picture tower itself is let go of: the timm model of the same
weights runs in its place.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.backbone import checkpoint_files
from harness.backbone.arithmetic import exact_float32
from harness.errors import HarnessError
from harness.language.source import EXTRA, NOT_INSTALLED, TextSource
from harness.registry import Weights

_BATCH = 256
_PICKLES = {".bin", ".pt", ".pth"}


class OpenClipTower:
    """open_clip's text tower, frozen, in float32."""

    def __init__(self, name: str, digest: str, model: Any, tokenizer: Any, device: str) -> None:
        """``model`` is open_clip's CLIP or CustomTextCLIP; it loses its picture tower."""
        self.name, self.digest = name, digest
        self._matrix, self._offset = _projection(name, model.visual)
        model.visual = nn.Identity()
        self._model = model.eval().requires_grad_(False).to(device)
        self._tokenizer, self._device = tokenizer, device
        bias = getattr(model, "logit_bias", None)
        self.scale = float(model.logit_scale.exp())
        self.bias = 0.0 if bias is None else float(bias)
        self.width = int(self._encode([""]).shape[1])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        parts = [
            self._encode(texts[first : first + _BATCH]) for first in range(0, len(texts), _BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        with exact_float32():
            tokens = self._tokenizer(list(texts)).to(self._device)
            vectors = self._model.encode_text(tokens).float().cpu()
        return nn.functional.normalize(vectors, dim=-1)

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        if self._matrix is None:
            return tokens
        found = tokens.float() @ self._matrix.to(tokens.device)
        return found if self._offset is None else found + self._offset.to(tokens.device)

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        own: Any = getattr(self._tokenizer, "tokenizer", None)  # of a Hugging Face one
        clean: Any = getattr(self._tokenizer, "clean_fn", str)
        context = self._tokenizer.context_length
        if own is None:
            lengths = [len(self._tokenizer.encode(text)) + 2 for text in texts]
        else:
            lengths = [len(own(clean(text)).input_ids) for text in texts]
        return np.array([length > context for length in lengths], bool)


def load_openclip_tower(
    model: str, source: TextSource, device: str, weights: Weights, seed: int
) -> OpenClipTower:
    """The tower that ``source`` names, for the entry ``model``. Raises ``HarnessError``."""
    try:
        import open_clip
    except ImportError:
        raise HarnessError(f"model {model!r}: {NOT_INSTALLED}") from None
    name = source.openclip or ""
    _check_name(model, source, open_clip)
    with _quiet():  # before the weights, which take longer
        try:
            tokenizer = open_clip.get_tokenizer(name)
        except ImportError as error:
            raise HarnessError(
                f"model {model!r}: the tokenizer of {source.name} needs a package that is not "
                f"installed ({_first_line(error)}): {EXTRA}"
            ) from None
        except Exception as error:  # as above
            raise HarnessError(
                f"model {model!r}: the tokenizer of {source.name} is not on this machine and could "
                f"not be fetched ({_first_line(error)}). Fetch it where there is a network"
            ) from None
    released = weights == "released"
    if released:
        _check_files(source)
    pretrained: str | None = None
    if released and not source.whole:
        pretrained = source.weights or str(source.checkpoint)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = open_clip.create_model(
                name,
                pretrained=pretrained,
                load_weights=released,
                require_pretrained=released,
                pretrained_text=False,  # a base of its own, where no weights are loaded
                pretrained_image=False,
            )
        except Exception as error:  # constructors, readers and downloads raise anything
            raise HarnessError(
                f"model {model!r}: its text tower, {source.name}, cannot be loaded "
                f"({_first_line(error)}). Fetch it where there is a network, or name a file as "
                f"`checkpoint:` in `text:`, or try the machinery with --weights random"
            ) from None
    own = source.name if released else f"{source.name}, random weights"
    return OpenClipTower(own, source.digest(weights, seed), module, tokenizer, device)


def _check_name(model: str, source: TextSource, open_clip: Any) -> None:
    """Raises ``HarnessError`` for a name or a tag that open_clip does not have."""
    import difflib

    name = source.openclip or ""
    if source.whole:
        if source.folder is not None and not (source.folder / "open_clip_config.json").is_file():
            raise HarnessError(
                f"model {model!r}: no open_clip_config.json in {source.folder} (`text:`)"
            )
        return
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise HarnessError(f"model {model!r}: open_clip has no model {name!r} (`text:`){hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source.weights is not None and source.weights not in tags:
        raise HarnessError(
            f"model {model!r}: open_clip has no weights {source.weights!r} for {name} (`text:`): "
            f"{', '.join(tags) or 'none at all'}"
        )
    if source.checkpoint is not None and not source.checkpoint.is_file():
        raise HarnessError(f"model {model!r}: no checkpoint at {source.checkpoint} (`text:`)")


def _check_files(source: TextSource) -> None:
    """Raises ``HarnessError`` for a local pickle that would need more than tensors. open_clip asks
    torch for the same, and where that fails in some ways reads the file again without it."""
    files = [source.checkpoint] if source.checkpoint is not None else []
    if source.folder is not None:
        files += sorted(source.folder.iterdir())
    for file in files:
        if file == source.checkpoint or file.suffix in _PICKLES:
            checkpoint_files.read(file)


def _projection(name: str, visual: Any) -> tuple[Tensor | None, Tensor | None]:
    """Matrix ``[D, E]`` and offset ``[E]`` that lead from the pooled and normed token to the common
    space, of open_clip's own picture tower or of a timm one; None where there is none.

    Raises ``HarnessError`` for a picture tower that pools or projects in another way.
    """
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        if getattr(visual, "attn_pool", None) is not None or not hasattr(visual, "proj"):
            raise HarnessError(f"{name}: its picture tower pools by attention: not supported")
        own = visual.proj
        return (None if own is None else own.detach().float().clone()), None
    layers = [each for each in visual.head if not isinstance(each, nn.Dropout)]
    layers += [trunk.head] if isinstance(getattr(trunk, "head", None), nn.Linear) else []
    if not layers:
        return None, None
    (layer, *more) = layers
    if more or not isinstance(layer, nn.Linear):
        raise HarnessError(f"{name}: its picture projection is no linear map: not supported")
    offset = None if layer.bias is None else layer.bias.detach().float().clone()
    return layer.weight.detach().float().T.contiguous(), offset


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs its progress to the root logger: what fails is told by us."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
