"""Episodes on film: a grid with a tile per task, its name, success and return written on it.

What is filmed is an evaluation: the frames are taken while :func:`mtrl.evaluate.evaluate` steps the suite, so
the episode that is shown is the one that is scored.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from mtrl.config import ConfigError
from mtrl.evaluate import Predicts, Scores, evaluate, names_of

FRAMES_PER_SECOND = 16  # about; a whole number of steps lies between two frames
TILE = 240  # pixels of a tile's side; even, as mp4 wants
BAR = 36  # pixels of the text below it
SUCCEEDED, NOT_YET, INK = (24, 110, 60), (45, 45, 50), (255, 255, 255)


def film(
    policy: Predicts, envs: VecEnv, path: Path, *,
    episodes: int = 1, tasks: Sequence[str] | None = None, tile: int = TILE,
) -> Scores:  # fmt: skip
    """Evaluate, and leave what was seen in a file: a video (.mp4, .gif) or the grid at the end (.png).

    Args:
        policy, envs, episodes: as :func:`mtrl.evaluate.evaluate` takes them; the envs made with
            ``render_mode="rgb_array"``.
        path: its suffix is the kind; a file that is there is replaced once the new one is whole.
        tasks: those that are shown, in this order; None shows all. All are stepped and scored.
        tile: pixels of a tile's side.

    Raises:
        ConfigError: another kind of file, a library that it needs is missing, it cannot be written, or a task
            that the suite lacks.
    """
    names = names_of(envs) or ()
    shown = [(t, names[t]) for t in (position(name, names) for name in tasks or names)]
    require_kind(path)
    metadata: dict[str, Any] = envs.metadata
    speed = float(metadata.get("render_fps", 30))
    every = max(1, round(speed / FRAMES_PER_SECOND))
    try:
        # a folder of its own: nobody's file has this name, and no link
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".video.") as folder:
            made = Path(folder) / path.name
            writer = WRITERS[path.suffix](made, speed / every)
            try:
                scores = evaluate(policy, Filmed(envs, writer, shown, episodes, every, tile), episodes, names)
            finally:
                writer.close()
            made.replace(path)
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written ({error.strerror or error})") from None
    return scores


def position(name: str, names: Sequence[str]) -> int:
    """Where a task stands in a suite; Meta-World's ``-v3`` may be left out."""
    for known in (name, f"{name}-v3"):
        if known in names:
            return list(names).index(known)
    raise ConfigError(f"task: {name!r} is not valid; it must be one of {', '.join(names)}")


def require_kind(path: Path) -> None:
    """Raise before anything is simulated when no such file can be made here.

    Raises:
        ConfigError: the suffix is none of :data:`WRITERS`, its library is missing, or its folder is.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"out: {str(path)!r} is not valid; it must end in {', '.join(WRITERS)}")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "out: an .mp4 needs the extra: pip install 'mtrl-suite[video]'; .gif and .png do without"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"out: {path} cannot be written (there is no folder {path.parent})")


class Filmed(VecEnvWrapper):
    """A suite that hands a frame to a writer every so many steps, and when the last episode ends.

    A task whose episodes are over keeps its last picture. An env that ends resets itself in the same step, so its last
    picture is the one that was taken before: one to ``every`` steps.
    """

    def __init__(
        self,
        envs: VecEnv,
        writer: Mp4 | Gif | Png,
        shown: Sequence[tuple[int, str]],
        episodes: int,
        every: int,
        tile: int,
    ) -> None:
        super().__init__(envs)
        self.writer, self.episodes, self.every = writer, episodes, every
        self.tiles = {t: Tile(name, tile) for t, name in shown}
        self.steps = 0

    def reset(self) -> Any:
        observations = self.venv.reset()
        self._look()
        self.writer.append(grid([tile.drawn() for tile in self.tiles.values()]))
        return observations

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.steps += 1
        running = [t for t, tile in self.tiles.items() if tile.ended < self.episodes]
        for t in running:
            self.tiles[t].step(float(rewards[t]), told(infos[t]), bool(dones[t]))
        over = bool(running) and all(tile.ended >= self.episodes for tile in self.tiles.values())
        if over or (running and self.steps % self.every == 0):
            if not over:
                self._look()
            self.writer.append(grid([tile.drawn() for tile in self.tiles.values()]))
        return observations, rewards, dones, infos

    def _look(self) -> None:
        pictures = self.venv.get_images()
        for t, tile in self.tiles.items():
            if tile.ended < self.episodes:
                tile.picture = pictures[t]


def told(info: Mapping[str, Any]) -> bool:
    """Whether a step says that it, or its episode so far, has succeeded."""
    return bool(info.get("is_success") or info.get("success"))


class Tile:
    """One task: its picture, and how its episode goes."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.picture: Any = None
        self.total = 0.0
        self.success: bool | None = None
        self.ended = 0
        self.fresh = True

    def step(self, reward: float, success: bool | None, done: bool) -> None:
        """What a step told. The numbers of an episode stay until the next one steps."""
        self.total = reward if self.fresh else self.total + reward
        self.success = success if self.fresh else success or self.success
        self.fresh = done
        self.ended += done

    def drawn(self) -> Image.Image:
        """``size`` pixels wide, the text below the picture; green once the episode has succeeded."""
        tile = Image.new("RGB", (self.size, self.size + BAR), SUCCEEDED if self.success else NOT_YET)
        picture = Image.fromarray(np.asarray(self.picture))
        picture.thumbnail((self.size, self.size))
        if picture.width < self.size and picture.height < self.size:
            scale = self.size / max(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        tile.paste(picture, ((self.size - picture.width) // 2, (self.size - picture.height) // 2))
        told = {None: "", True: "success", False: "no success"}[self.success]
        text = ImageDraw.Draw(tile)
        text.rectangle((0, 0, self.size - 1, self.size + BAR - 1), outline=INK)
        for line, words in enumerate((self.name, f"{told}  return {self.total:.1f}".strip())):
            text.text((4, self.size + 2 + line * (BAR // 2 - 1)), words, INK, font_for(words, self.size - 8))
        return tile


@cache
def font_for(words: str, width: int) -> Any:
    """The largest font up to 13 points in which the words fit."""
    for points in range(13, 6, -1):
        font = ImageFont.load_default(points)
        if font.getlength(words) <= width:
            break
    return font


def grid(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in rows: at most five in each, as square as may be."""
    columns = min(len(tiles), max(5, math.ceil(math.sqrt(len(tiles))))) if len(tiles) != 4 else 2
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    whole = Image.new("RGB", (columns * width, rows * height), NOT_YET)
    for i, tile in enumerate(tiles):
        whole.paste(tile, (i % columns * width, i // columns * height))
    return whole


class Mp4:
    """A video that any browser plays."""

    def __init__(self, path: Path, speed: float) -> None:
        import imageio.v2

        self.file: Any = imageio.v2.get_writer(
            path, fps=speed, codec="libx264", quality=7, macro_block_size=2
        )

    def append(self, frame: Image.Image) -> None:
        self.file.append_data(np.asarray(frame))

    def close(self) -> None:
        self.file.close()


class Gif:
    """A picture that moves, the whole of it in memory until it is closed."""

    def __init__(self, path: Path, speed: float) -> None:
        self.path, self.speed = path, speed
        self.frames: list[Image.Image] = []

    def append(self, frame: Image.Image) -> None:
        self.frames.append(frame.quantize(128, dither=Image.Dither.NONE))

    def close(self) -> None:
        if self.frames:
            # with one palette, and no dither, what does not move is not written again
            ends = grid([self.frames[0].convert("RGB"), self.frames[-1].convert("RGB")])
            palette = ends.quantize(64, dither=Image.Dither.NONE)
            first, *others = (
                frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
                for frame in self.frames
            )
            lasting = [round(1000 / self.speed)] * len(others)
            first.save(self.path, save_all=True, append_images=others, duration=[*lasting, 2000], loop=0)


class Png:
    """The last frame."""

    def __init__(self, path: Path, speed: float) -> None:
        self.path = path
        self.frame: Image.Image | None = None

    def append(self, frame: Image.Image) -> None:
        self.frame = frame

    def close(self) -> None:
        if self.frame is not None:
            self.frame.save(self.path, optimize=True)


WRITERS: dict[str, type[Mp4 | Gif | Png]] = {".mp4": Mp4, ".gif": Gif, ".png": Png}
"""By a file's suffix: made with its path and frames per second, given frames in their order, closed."""
