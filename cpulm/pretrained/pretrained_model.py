"""A model as read from another program's file, with weights that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.model.transformer import Transformer
from cpulm.pretrained.architecture import TITLES, Architecture
from cpulm.pretrained.named_weights import names_in, rows_of_parts
from cpulm.settings import ModelSettings

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class PretrainedModel:
    """A model of another program.

    Attributes:
        weights: float32, by the names of our parameters.
        notes: what is other than in the file, in words.
    """

    settings: ModelSettings
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    notes: list[str] = field(default_factory=list)


def own_shapes(settings: ModelSettings, vocab_size: int) -> dict[str, Shape]:
    """The shapes of our parameters, by name."""
    with torch.device("meta"):
        model = Transformer(settings, vocab_size)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


class OwnWeights(Mapping[str, Tensor]):
    """A model's weights by the names of our parameters, each put together when it is asked for.

    Args:
        settings: of the model.
        shapes: of our parameters.
        architecture: whose names the file has.
        there: those names. Biases that it lacks are zeros.
        read: gives a weight of the file, float32 [outputs, inputs], by its name.
    """

    def __init__(
        self,
        settings: ModelSettings,
        shapes: Mapping[str, Shape],
        architecture: Architecture,
        there: Collection[str],
        read: Callable[[str], Tensor],
    ) -> None:
        self._settings, self._shapes, self._architecture = settings, shapes, architecture
        self._there, self._read = there, read

    def __getitem__(self, ours: str) -> Tensor:
        parts = self._parts(ours).items()
        found = [self._read(name) if name in self._there else torch.zeros(shape) for name, shape in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def check(self, shape_of: Callable[[str], Shape]) -> None:
        """Compare the names and shapes in the file with those that the settings make.

        Raises:
            DataError: names the first that is missing, left over or of another shape.
        """
        title = TITLES[self._architecture]
        wanted = {name: shape for ours in self for name, shape in self._parts(ours).items()}
        for name, shape in wanted.items():
            if name not in self._there:
                if name.endswith("bias"):
                    continue
                raise DataError(f"it has no weight {name}, which a {title} of its settings has")
            if shape_of(name) != shape:
                found = list(shape_of(name))
                raise DataError(f"its weight {name} is {found}, and its settings make it {list(shape)}")
        if more := sorted(set(self._there) - wanted.keys()):
            raise DataError(f"it has a weight {more[0]}, which a {title} of its settings does not have")

    def _parts(self, ours: str) -> dict[str, Shape]:
        """The names in the file of our weight's parts, with their shapes."""
        rows, *others = self._shapes[ours]
        names = names_in(self._architecture, ours)
        counts = rows_of_parts(ours, rows, self._settings, len(names))
        return {name: (count, *others) for name, count in zip(names, counts, strict=True)}


class FittedWeights(Mapping[str, Tensor]):
    """The weights of a model for another number of tokens, or of learned positions.

    New tokens get the mean of all: they begin as likely as the average one.
    """

    def __init__(self, weights: Mapping[str, Tensor], vocab_size: int, block_size: int) -> None:
        self._weights = weights
        self._rows = {
            "wte.weight": vocab_size,
            "lm_head.weight": vocab_size,
            "wpe.weight": block_size,
        }

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        rows = self._rows.get(name, len(weight))
        if rows == len(weight):
            return weight
        if rows < len(weight):
            return weight[:rows].clone()
        return torch.cat((weight, weight.mean(0, keepdim=True).expand(rows - len(weight), -1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def fitted_to_tokenizer(
    settings: ModelSettings, tokenizer: Tokenizer, weights: OwnWeights, rows: int
) -> PretrainedModel:
    """The model with as many ``rows`` in its embedding as the tokenizer has tokens.

    Raises:
        DataError: if the tokenizer has tokens that the model does not know.
    """
    size, notes = tokenizer.vocab_size, []
    if unknown := set(range(rows, size)) - tokenizer.special_ids:
        raise DataError(
            f"its tokenizer has {size:,} tokens and its embedding {rows:,} rows",
            f"the first token without a row is {tokenizer.inner.id_to_token(min(unknown))!r}",
        )
    if size < rows:
        notes.append(f"left out {rows - size:,} rows of the embedding that the tokenizer has no tokens for")
    elif size > rows:
        notes.append(f"added {size - rows} special tokens that the model has not learned")
    return PretrainedModel(settings, tokenizer, FittedWeights(weights, size, settings.block_size), notes)
