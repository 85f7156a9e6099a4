"""Draws the pictures of `docs/method.md` from a finished run: one trajectory through every step of the method.

    jaxdrl run --config=configs/drl_digits.py --workdir=runs/first
    python docs/draw_method.py --workdir=runs/first --out=docs/method

Nothing is chosen: the noise is that of `--seed`, and the class is its last digit. A card of its own colour lies under every picture, so
that it can be read on light and on dark pages.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdrl import stored_config
from jaxdrl.flow import memoryless, ode
from jaxdrl.training import loading, models
from jaxdrl.training.methods import adjoint

WIDTH, MARGIN, TILE, GAP, COLUMNS = 900, 40, 132, 40, 5  # pixels; on a phone 360 are left of the width, and 12 of the text's 30
LINE, TEXT = 44, 30
CARD, INK, MUTED = (250, 249, 246), (33, 37, 41), (95, 100, 108)
MORE, LESS = np.array([178.0, 24, 43]), np.array([33.0, 102, 172])  # of signed values; white is 0


class Trajectory(NamedTuple):
    """What is drawn.

    Attributes:
        times: t_0 .. t_K.
        states: X_0 .. X_K.
        features: Of X_K.
        logits: Of the discriminator at X_K.
        gradient: Of the logit with respect to X_K.
        adjoints: A_0 .. A_K.
        corrections: T_k - v_base(X_k, t_k), the change of velocity that is asked for.
        learnt: v_tuned - v_base at the same states.
        before: Images of the base, other noise, a class each.
        after: Of the tuned model, the same noise.
        rewards: Logits of both, [2, images].
    """

    times: Any
    states: Any
    features: Any
    logits: Any
    gradient: Any
    adjoints: Any
    corrections: Any
    learnt: Any
    before: Any
    after: Any
    rewards: Any


def follow(workdir: Path, seed: int) -> Trajectory:
    """Computes one trajectory with the library's own functions.

    Args:
        workdir: A run on pixels, finished up to post-training.
        seed: Of the noise.

    Returns:
        Arrays of the host.
    """
    config = stored_config.get_config(str(workdir))
    base, tuned = (loading.load_model(config, workdir, name) for name in ("base", "tuned"))
    encoder, head = loading.load_encoder(config, workdir, "reward"), loading.load_discriminator(workdir)
    velocity, reward = models.backbone(config).velocity, models.reward(config, encoder, head)
    settings = adjoint.settings_from(config)
    schedule, shape = settings.schedule, tuple(config.data.image_shape)

    @jax.jit
    def compute(key):
        keys, label = jax.random.split(key, 3), jnp.array([seed % config.data.num_classes], jnp.int32)
        of = lambda params, y: lambda x, t: velocity(params, x, t, y)  # noqa: E731
        states, _ = memoryless.rollout(of(base, label), jax.random.normal(keys[0], (1, *shape)), keys[1], schedule)
        logits, pullback = jax.vjp(lambda x: reward(x, label), states[-1])
        gradient = pullback(jnp.ones_like(logits))[0]
        terminal = -settings.reward_scale * gradient
        adjoints, _ = memoryless.lean_adjoint(of(base, label), states, terminal, schedule)
        adjoints = jnp.concatenate([adjoints, terminal[None]])
        corrections = -0.5 * jnp.asarray(schedule.gain).reshape(-1, 1, 1, 1, 1) ** 2 * adjoints[:-1]
        change = lambda x, t: velocity(tuned, x, t[None], label) - velocity(base, x, t[None], label)  # noqa: E731
        learnt = jax.vmap(change)(states[:-1], jnp.asarray(schedule.times[:-1], jnp.float32))
        classes = jnp.arange(COLUMNS, dtype=jnp.int32) % config.data.num_classes
        noise, grid = jax.random.normal(keys[2], (COLUMNS, *shape)), ode.uniform_grid(config.evaluate.sampling_steps)
        images = [ode.sample(of(params, classes), noise, grid, method=config.sampler.method) for params in (base, tuned)]
        rewards = jnp.stack([reward(found, classes) for found in images])
        features = models.features(config, "reward")(encoder, states[-1])
        one = (states[:, 0], features[0], logits[0], gradient[0], adjoints[:, 0], corrections[:, 0], learnt[:, 0])
        return Trajectory(schedule.times, *one, *images, rewards)

    return jax.tree.map(np.asarray, compute(jax.random.key(seed)))


def grey(image: np.ndarray) -> Image.Image:
    """A tile of an image in [-1, 1], brighter values cut."""
    levels = np.clip((image.mean(axis=-1) + 1) * 127.5, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([levels] * 3, axis=-1)).resize((TILE, TILE), Image.Resampling.NEAREST)


def signed(values: np.ndarray, largest: float | None = None, size: tuple[int, int] = (TILE, TILE)) -> Image.Image:
    """A tile of signed values: red adds, blue takes away, white is 0, full colour is the largest."""
    share = np.clip(values / (largest or np.abs(values).max() or 1.0), -1, 1)[..., None]
    colours = 255 + np.abs(share) * (np.where(share > 0, MORE, LESS) - 255)
    return Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


class Card:
    """A picture that grows downwards, row by row."""

    def __init__(self, height: int) -> None:
        """Makes an empty one, `height` pixels high."""
        self.image = Image.new("RGBA", (WIDTH, height), (0, 0, 0, 0))
        self.draw, self.y = ImageDraw.Draw(self.image), MARGIN // 2
        self.draw.rounded_rectangle((0, 0, WIDTH - 1, height - 1), 24, fill=CARD)

    def text(self, text: str, x: float = MARGIN, *, anchor: str = "lt", fill: tuple[int, int, int] = INK) -> None:
        """Writes at the current height."""
        self.draw.text((x, self.y), text, font=ImageFont.load_default(TEXT), fill=fill, anchor=anchor)

    def title(self, text: str) -> None:
        """Writes a line and goes below it."""
        self.text(text)
        self.y += LINE

    def row(self, tiles: list[Image.Image], under: list[str], arrows: str = "") -> None:
        """Draws tiles with a text under each, and arrows between them that point "right" or "left"."""
        for index, (tile, text) in enumerate(zip(tiles, under, strict=True)):
            x = MARGIN + index * (TILE + GAP)
            self.frame(tile, x)
            if index and arrows:
                self.arrow(x - GAP + 4, x - 5, arrows)
            self.y += TILE + 10
            self.text(text, x + TILE / 2, anchor="mt", fill=MUTED)
            self.y -= TILE + 10
        self.y += TILE + LINE + 20

    def frame(self, tile: Image.Image, x: int) -> None:
        """Draws a tile with a thin border."""
        self.image.paste(tile, (x, self.y))
        self.draw.rectangle((x - 1, self.y - 1, x + tile.width, self.y + tile.height), outline=MUTED)

    def arrow(self, start: int, end: int, direction: str) -> None:
        """Draws an arrow at half the height of a tile."""
        y, (tip, back) = self.y + TILE // 2, (end, -1) if direction == "right" else (start, 1)
        self.draw.line((start, y, end, y), fill=MUTED, width=4)
        self.draw.polygon([(tip, y), (tip + back * 14, y - 10), (tip + back * 14, y + 10)], fill=MUTED)

    def save(self, path: Path) -> None:
        """Writes a PNG."""
        self.image.save(path, optimize=True)


def rollout(found: Trajectory) -> Card:
    """Step 1: states of the SDE."""
    card, chosen = Card(270), _chosen(found)
    card.title("From noise to an image, with fresh noise at each step")
    card.row([grey(found.states[k]) for k in chosen], [f"t = {found.times[k]:.2g}" for k in chosen], "right")
    return card


def reward(found: Trajectory) -> Card:
    """Step 2: image, features, logit, gradient."""
    card = Card(270)
    card.title("What the discriminator makes of the image")
    features, side = found.features, 8
    width = -(-len(features) // side)
    table = np.pad(features, (0, side * width - len(features))).reshape(side, width)
    wide = TILE * width // side
    places = np.cumsum([MARGIN, TILE + GAP, wide + GAP, TILE + GAP])
    tiles = [grey(found.states[-1]), signed(table, size=(wide, TILE)), None, signed(found.gradient.mean(axis=-1))]
    names = ["image", f"{len(features)} features", "logit", "its gradient"]
    for x, tile, name in zip(places.tolist(), tiles, names, strict=True):
        middle = x + (tile.width if tile else TILE) / 2
        if tile:
            card.frame(tile, x)
        else:
            font = ImageFont.load_default(52)
            card.draw.text((middle, card.y + TILE / 2), f"{found.logits:+.2f}", font=font, fill=INK, anchor="mm")
        if x > MARGIN:
            card.arrow(x - GAP + 4, x - 5, "right")
        card.y += TILE + 10
        card.text(name, middle, anchor="mt", fill=MUTED)
        card.y -= TILE + 10
    return card


def regression(found: Trajectory) -> Card:
    """Steps 3 to 5: adjoints, what they ask for, and what was learnt."""
    card, chosen = Card(3 * (TILE + 2 * LINE + 20) + MARGIN // 2), _chosen(found)
    adjoints, last = found.adjoints, len(found.adjoints) - 2
    norms = np.sqrt((adjoints**2).sum(axis=(1, 2, 3)))
    card.title("The gradient travels back: lean adjoint, and its norm")
    card.row([signed(adjoints[k].mean(axis=-1)) for k in chosen], [f"{norms[k]:.2f}" for k in chosen], "left")
    at = [min(k, last) for k in chosen]  # there is no step at t = 1
    asked, learnt = (values.mean(axis=-1) for values in (found.corrections, found.learnt))
    largest = [np.abs(asked[k]).max() for k in at]
    card.title("The change of velocity that it asks for")
    times = [f"t = {found.times[k]:.2g}" for k in at]
    card.row([signed(asked[k], scale) for k, scale in zip(at, largest, strict=True)], times)
    card.title("The change that the tuned network learnt, same colours")
    card.row([signed(learnt[k], scale) for k, scale in zip(at, largest, strict=True)], times)
    return card


def after(found: Trajectory) -> Card:
    """The result: the same noise, before and after."""
    card = Card(3 * (TILE + 2 * LINE + 20) + MARGIN // 2)
    for title, images, rewards in (
        ("Base, and the logit", found.before, found.rewards[0]),
        ("After DRL", found.after, found.rewards[1]),
    ):
        card.title(title)
        card.row([grey(image) for image in images], [f"{value:+.2f}" for value in rewards])
    card.title("What changed")
    changes = (found.after - found.before).mean(axis=-1)
    card.row(
        [signed(change, np.abs(changes).max()) for change in changes],
        [f"{value:+.2f}" for value in found.rewards[1] - found.rewards[0]],
    )
    return card


def _chosen(found: Trajectory) -> list[int]:
    return np.linspace(0, len(found.times) - 1, COLUMNS).round().astype(int).tolist()


def main(argv: list[str] | None = None) -> None:
    """Draws all pictures.

    Args:
        argv: Arguments; by default the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    found = follow(options.workdir, options.seed)
    for draw in (rollout, reward, regression, after):
        draw(found).save(options.out / f"{draw.__name__}.png")


if __name__ == "__main__":
    main()
