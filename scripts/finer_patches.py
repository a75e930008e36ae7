"""Cut a captioner's image patches into finer ones: more tokens, the same answers.

A patch becomes a block of smaller ones. One more layer in front gathers each block: a head per
place in the block attends to the patch there and copies its picture, so that every token of the
block ends as the old patch's token; the other heads take away what this needed. Layers behind it
then see each old token as often as a block has patches. As many blocks as that lend a patch to the
class token, so that its share in each softmax stays as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch

State = dict[str, torch.Tensor]
VISION = "vision_model.encoder.layers."
_EMBEDDINGS = "vision_model.embeddings."
_CLASS, _POSITIONS, _KERNEL, _OFFSET = (
    f"{_EMBEDDINGS}{name}"
    for name in (
        "class_embedding",
        "position_embedding",
        "patch_embedding.weight",
        "patch_embedding.bias",
    )
)
_HEAD = 64
#: sizes before the first norm: of a picture's numbers, of a code, of the two constants that make
#: every token's variance almost the same
_PICTURE, _CODE, _CONSTANT = 1 / 64, 0.25, 4.0
#: sizes behind it: of a code; a picture's numbers are what they are
_NORMED_CODE = 2.0
#: how much more a score is where one more of the three parts of a key fits
_SHARP = 20.0
#: numbers of a normalised picture squared, on average
_USUAL = 1.0


class _Plan:
    """Which channel says what, before the first layer gathers it."""

    def __init__(self, side: int, parts: int, numbers: int, width: int) -> None:
        self.side, self.parts, self.blocks = side, parts, side * side
        self.copies = parts * parts
        self._next = 0
        self.picture, self.negative = self._take(numbers), self._take(numbers)
        #: whose token this becomes: a block's or the class token's
        self.block, self.own_class = self._take(self.blocks), self._take(1)
        #: where this patch is; the class token has a row, a column and a part of its own
        self.row, self.column = self._take(side + 1), self._take(side + 1)
        self.part = self._take(self.copies + 1)
        self.constant = self._take(2)
        if self._next > width or (self.copies + 3) * _HEAD > width:
            raise ValueError(f"{width} channels do not hold {self.copies} parts of a patch")
        largest = max(numbers, self.blocks, self.part.stop - self.row.start + 1)
        if largest > _HEAD:
            raise ValueError(f"{largest} numbers of a patch do not fit a head of {_HEAD}")
        # Blocks all over the picture lend their last part to the class token.
        self.lenders = {
            (2 * i + 1) * self.blocks // (2 * (self.copies - 1)) for i in range(self.copies - 1)
        }

    def _take(self, count: int) -> slice:
        self._next += count
        return slice(self._next - count, self._next)

    def codes(self, width: int) -> torch.Tensor:
        """The position table: ``[1 + patches, width]``."""
        grid = self.side * self.parts
        table = torch.zeros(1 + grid * grid, width)
        for number in range(len(table)):
            place = number - 1
            row, column = divmod(place // grid, self.parts), divmod(place % grid, self.parts)
            block = row[0] * self.side + column[0]
            part = row[1] * self.parts + column[1]
            is_class = number == 0
            borrowed = is_class or (block in self.lenders and part == self.copies - 1)
            table[number, self.own_class.start if borrowed else self.block.start + block] = _CODE
            keys = (self.side, self.side, self.copies) if is_class else (row[0], column[0], part)
            for channels, key in zip((self.row, self.column, self.part), keys, strict=True):
                table[number, channels.start + key] = _CODE
        # No mean: what a norm subtracts is nothing.
        table[:, self.constant.start] = _CONSTANT
        table[:, self.constant.start + 1] = -_CONSTANT - 4 * _CODE
        return table


def finer(vision: Any, state: State, image_size: int, patch_size: int, noise: float = 0.0) -> State:
    """The state of a captioner with finer patches and one more layer in front.

    Args:
        vision: the part's configuration; it is changed.
        state: every tensor by HuggingFace's name.
        image_size: pixels of the new picture's side, a multiple of the old one's.
        patch_size: pixels of a new patch's side; an old patch is a square of whole new ones.
        noise: what is added to the new tensors, as a share of their spread.

    Raises:
        ValueError: the sizes do not fit each other or the model's width.
    """
    width, old_side = vision.hidden_size, vision.image_size // vision.patch_size
    scale = image_size // vision.image_size
    parts = image_size // patch_size // old_side
    small = vision.patch_size // parts
    if image_size != scale * vision.image_size or patch_size * parts != scale * vision.patch_size:
        raise ValueError(f"{image_size} px in patches of {patch_size}: not whole parts of the old")
    plan = _Plan(old_side, parts, 3 * small * small, width)
    made = {name: value for name, value in state.items() if not name.startswith(VISION)}
    for name, value in state.items():
        if name.startswith(VISION):
            number, _, rest = name.removeprefix(VISION).partition(".")
            made[f"{VISION}{int(number) + 1}.{rest}"] = value
    first = {
        name.removeprefix(f"{VISION}0."): torch.zeros_like(value)
        for name, value in state.items()
        if name.startswith(f"{VISION}0.")
    }
    _norm(plan, first, width, vision.layer_norm_eps)
    _attention(plan, first, state)
    new = {f"{VISION}0.{name}": value for name, value in first.items()}
    new[_KERNEL] = _averages(plan, width, patch_size, scale)
    new[_OFFSET] = torch.zeros(width)
    new[_CLASS] = torch.zeros(1, 1, width)
    new[_POSITIONS] = plan.codes(width)[None]
    for name, value in new.items():
        if noise and "norm" not in name:
            value += noise * _spread(name, value, state) * torch.randn_like(value)
    vision.image_size, vision.patch_size = image_size, patch_size
    vision.num_hidden_layers += 1
    return made | new


def _spread(name: str, value: torch.Tensor, state: State) -> torch.Tensor:
    """What noise is measured by: each head has its own, what was empty has the next layer's."""
    if name.startswith(_EMBEDDINGS) and name != _KERNEL:
        return torch.tensor(_PICTURE)
    if name.endswith("projection.weight"):
        return value.view(len(value), -1, _HEAD).std((0, 2)).repeat_interleave(_HEAD)
    if name.endswith("qkv.weight"):
        return value.view(-1, _HEAD, value.shape[1]).std((1, 2)).repeat_interleave(_HEAD)[:, None]
    return value.std() if name == _KERNEL else state[name].std()


def _averages(plan: _Plan, width: int, patch: int, scale: int) -> torch.Tensor:
    """A kernel that shrinks a patch to its old resolution, into channels and their negatives."""
    small = patch // scale
    kernel = torch.zeros(width, 3, patch, patch)
    for index in range(plan.picture.stop):
        colour, place = divmod(index, small * small)
        top, left = (scale * number for number in divmod(place, small))
        square = kernel[:, colour, top : top + scale, left : left + scale]
        square[plan.picture.start + index] = _PICTURE / scale**2
        square[plan.negative.start + index] = -_PICTURE / scale**2
    return kernel


def _norm(plan: _Plan, first: State, width: int, epsilon: float) -> None:
    table = plan.codes(width)
    numbers = plan.picture.stop
    energy = float((table[0] ** 2).sum()) + 2 * numbers * _USUAL * _PICTURE**2
    deviation = math.sqrt(energy / width + epsilon)
    weight = torch.ones(width)
    weight[plan.picture] = weight[plan.negative] = deviation / _PICTURE
    for channels in (plan.block, plan.own_class, plan.row, plan.column, plan.part):
        weight[channels] = deviation / _CODE * _NORMED_CODE
    weight[plan.constant] = 0.01
    first["layer_norm1.weight"] = weight
    first["layer_norm2.weight"] = torch.ones(width)


def _attention(plan: _Plan, first: State, state: State) -> None:
    width = first["self_attn.projection.bias"].shape[0]
    query, key, value = first["self_attn.qkv.weight"].view(3, width // _HEAD, _HEAD, width)
    offset = first["self_attn.qkv.bias"].view(3, width // _HEAD, _HEAD)[0]
    out = first["self_attn.projection.weight"].view(width, width // _HEAD, _HEAD)
    keys = [*range(plan.row.start, plan.part.stop)]
    rows, columns = plan.side + 1, 2 * (plan.side + 1)
    size = math.sqrt(_SHARP * math.sqrt(_HEAD)) / _NORMED_CODE
    places = torch.arange(len(keys))
    key[:, places, keys] = size
    table = plan.codes(width)
    old = state[_KERNEL].reshape(
        width, 3, plan.parts, -1, plan.parts, state[_KERNEL].shape[-1] // plan.parts
    )
    numbers = plan.picture.stop
    seen = torch.arange(numbers)
    for part in range(plan.copies):
        # Asks for the patch at one place of the block that the token is to become.
        for block in range(plan.blocks):
            row, column = divmod(block, plan.side)
            query[part, row, plan.block.start + block] = size
            query[part, rows + column, plan.block.start + block] = size
        query[part, plan.side, plan.own_class] = size
        query[part, rows + plan.side, plan.own_class] = size
        offset[part, columns + part] = size * _NORMED_CODE
        _copy_picture(plan, value[part])
        high, wide = divmod(part, plan.parts)
        out[:, part, :numbers] = old[:, :, high, :, wide].reshape(width, numbers)
    own = range(plan.copies, plan.copies + 3)
    for head in own:
        query[head, places, keys] = size
    blocks, rest, picture = own
    positions = state[_POSITIONS][0]
    value[blocks, torch.arange(plan.blocks), [*range(plan.block.start, plan.block.stop)]] = (
        1 / _NORMED_CODE
    )
    wanted = positions[1:] + state[_OFFSET]
    wanted[:, plan.block] -= _CODE * torch.eye(plan.blocks)
    out[:, blocks, : plan.blocks] = wanted.T
    value[rest, places, keys] = 1 / _NORMED_CODE
    out[keys, rest, places] = -_CODE
    value[rest, len(keys), plan.own_class] = 1 / _NORMED_CODE
    out[:, rest, len(keys)] = positions[0] + state[_CLASS][0, 0]
    out[plan.own_class, rest, len(keys)] -= _CODE
    _copy_picture(plan, value[picture])
    out[seen, picture, seen] = -_PICTURE
    out[seen + numbers, picture, seen] = _PICTURE
    first["self_attn.projection.bias"][plan.constant] = -table[0, plan.constant]


def _copy_picture(plan: _Plan, value: torch.Tensor) -> None:
    seen = torch.arange(plan.picture.stop)
    value[seen, seen] = 0.5
    value[seen, seen + plan.picture.stop] = -0.5
