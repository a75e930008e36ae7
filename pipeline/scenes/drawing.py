"""Drawing a scene: a textured background, the shapes, and noise."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.scenes.description import seeded
from pipeline.scenes.scene import Scene, SceneObject

_COLOR_VALUES: dict[str, tuple[int, int, int]] = {
    "red": (212, 28, 32),
    "orange": (248, 136, 16),
    "yellow": (244, 232, 40),
    "green": (32, 168, 52),
    "blue": (36, 84, 228),
    "purple": (160, 40, 200),
    "white": (246, 246, 246),
}
_NOISE = 12
_Point = tuple[float, float]


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image; the same scene always gives the same pixels."""
    source = seeded(f"drawing {scene.seed}")
    image = Image.fromarray(_background(scene, source))
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        color = tuple(
            min(255, max(0, value + source.randint(-14, 14))) for value in _COLOR_VALUES[item.color]
        )
        _draw_object(pen, item, scene, color)
    raw = np.random.PCG64(scene.seed).random_raw(scene.height * scene.width * 3 // 8 + 1)
    noise = raw.view(np.uint8)[: scene.height * scene.width * 3].astype(np.int16)
    noise = (noise * (2 * _NOISE + 1) >> 8) - _NOISE
    pixels = np.asarray(image, dtype=np.int16) + noise.reshape(scene.height, scene.width, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(scene: Scene, source: random.Random) -> NDArray[np.uint8]:
    """Return the background, uint8 ``[height, width, 3]``: a dull tone with a pattern on it."""
    level = source.uniform(52.0, 92.0)
    tone = np.array([level + source.uniform(-12.0, 12.0) for _ in range(3)])
    contrast = source.uniform(24.0, 40.0) * source.choice((-1.0, 1.0))
    rows, columns = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float64)
    period = source.uniform(0.14, 0.2) * math.sqrt(scene.width * scene.height)
    rows += source.uniform(0.0, period)
    columns += source.uniform(0.0, period)
    if scene.background == "plain":
        across, down = source.uniform(-1.0, 1.0), source.uniform(-1.0, 1.0)
        pattern = (across * columns / scene.width + down * rows / scene.height) * 0.25
    elif scene.background == "striped":
        angle = source.uniform(0.0, math.pi)
        along = columns * math.cos(angle) + rows * math.sin(angle)
        pattern = (np.mod(along, period) < period / 2).astype(np.float64)
    elif scene.background == "checkered":
        cells = np.floor(columns / period * 1.6) + np.floor(rows / period * 1.6)
        pattern = np.mod(cells, 2)
    else:
        away_x = np.mod(columns, period) - period / 2
        away_y = np.mod(rows, period) - period / 2
        pattern = (away_x**2 + away_y**2 < (period * 0.27) ** 2).astype(np.float64)
    pixels: NDArray[np.float64] = tone[None, None, :] + contrast * pattern[:, :, None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_object(
    pen: ImageDraw.ImageDraw, item: SceneObject, scene: Scene, color: tuple[int, ...]
) -> None:
    """Draw one shape in place."""
    x, y, radius = item.x * scene.width, item.y * scene.height, item.radius
    if item.shape in ("circle", "ring"):
        radius *= 0.93
        box = (x - radius, y - radius, x + radius, y + radius)
        if item.shape == "circle":
            pen.ellipse(box, fill=color)
        else:
            pen.ellipse(box, outline=color, width=max(3, round(radius * 0.36)))
        return
    turn = math.radians(item.rotation)
    corners = [
        (
            x + radius * (u * math.cos(turn) - v * math.sin(turn)),
            y + radius * (u * math.sin(turn) + v * math.cos(turn)),
        )
        for u, v in _outline(item.shape)
    ]
    pen.polygon(corners, fill=color)


def _outline(shape: str) -> list[_Point]:
    """Return the corners of a shape of unit radius around the origin."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "star":
        points = []
        for step in range(10):
            reach = 1.08 if step % 2 == 0 else 0.45
            angle = math.pi * step / 5
            points.append((reach * math.sin(angle), -reach * math.cos(angle)))
        return points
    arm = 0.3
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    return [_quarter_turned(point, turns) for turns in range(4) for point in quarter]


def _quarter_turned(point: _Point, turns: int) -> _Point:
    """Turn a point around the origin by a number of right angles."""
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y
