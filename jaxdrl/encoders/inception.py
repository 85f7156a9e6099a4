"""The Inception network of the Frechet inception distance: the TensorFlow graph of 2015-12-05, always float32.

Sources: Szegedy et al., arXiv 1512.00567; Heusel et al., FID, arXiv 1706.08500; toshas/torch-fidelity feature_extractor_inceptionv3.py and
mseitzer/pytorch-fid inception.py. Beside torchvision's: 1008 classes, batch norm with eps 1e-3, average pools that do not count their
padding, and a max pool in the last block, an error of the graph that is kept. Three outputs:

- "pool" [batch, 2048], the mean of the last map (FID, precision and recall);
- "spatial" [batch, 2023], the first 7 channels of Mixed_6d's 1 x 1 branch, rows, columns, channels (sFID);
- "logits" [batch, 1008], without the bias (Inception Score).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Conv(nn.Module):
    """A convolution without bias, batch norm with its running statistics, ReLU.

    Attributes:
        features: Channels out.
        kernel: (height, width).
        stride: Of both axes.
        padding: (rows, columns).
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 d"]:
        """Applies the layers.

        Args:
            x: Maps.

        Returns:
            Maps.
        """
        rows, columns = self.padding
        pads = ((rows, rows), (columns, columns))
        strides = (self.stride, self.stride)
        x = nn.Conv(self.features, self.kernel, strides, padding=pads, use_bias=False, param_dtype=jnp.float32, name="conv")(x)
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (self.features,)
        scale, bias = self.param("scale", ones, shape, jnp.float32), self.param("bias", zeros, shape, jnp.float32)
        mean, var = self.param("mean", zeros, shape, jnp.float32), self.param("var", ones, shape, jnp.float32)
        return jax.nn.relu((x - mean) * (scale * jax.lax.rsqrt(var + 1e-3)) + bias)


def _average(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _largest(x, stride: int = 2):
    return nn.max_pool(x, (3, 3), (stride, stride), padding="SAME" if stride == 1 else "VALID")


class Inception(nn.Module):
    """The network, on images of 299 x 299 pixels, (byte - 128) / 128.

    Attributes:
        classes: Of the logits.
    """

    classes: int = 1008

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: Preprocessed.

        Returns:
            "pool", "spatial", "logits" (see the module) and "patches", the last map.
        """
        x = self._c("Conv2d_1a_3x3", 32, (3, 3), 2)(images)
        x = self._c("Conv2d_2a_3x3", 32, (3, 3))(x)
        x = _largest(self._c("Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1))(x))
        x = self._c("Conv2d_4a_3x3", 192, (3, 3))(self._c("Conv2d_3b_1x1", 80)(x))
        x = _largest(x)
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self._a(f"Mixed_{name}", x, pool)
        x = self._b("Mixed_6a", x)
        spatial = x
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, branch = self._seven(f"Mixed_{name}", x, width)
            spatial = branch if name == "6d" else spatial
        x = self._d("Mixed_7a", x)
        x = self._e("Mixed_7b", x, _average)
        x = self._e("Mixed_7c", x, lambda x: _largest(x, 1))
        pooled = x.mean(axis=(1, 2))
        weight = self.param("fc", nn.initializers.lecun_normal(), (pooled.shape[-1], self.classes), jnp.float32)
        self.param("fc_bias", nn.initializers.zeros, (self.classes,), jnp.float32)
        return {
            "pool": pooled,
            "spatial": spatial[..., :7].reshape(len(x), -1),
            "logits": pooled @ weight,
            "patches": x.reshape(len(x), -1, x.shape[-1]),
        }

    def _c(self, name: str, width: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, padding: tuple[int, int] = (0, 0)):
        return Conv(width, kernel, stride, padding, name=name.replace(".", "_"))

    def _a(self, name: str, x, pool: int):
        one = self._c(f"{name}.branch1x1", 64)(x)
        five = self._c(f"{name}.branch5x5_2", 64, (5, 5), padding=(2, 2))(self._c(f"{name}.branch5x5_1", 48)(x))
        three = self._c(f"{name}.branch3x3dbl_2", 96, (3, 3), padding=(1, 1))(self._c(f"{name}.branch3x3dbl_1", 64)(x))
        three = self._c(f"{name}.branch3x3dbl_3", 96, (3, 3), padding=(1, 1))(three)
        return jnp.concatenate([one, five, three, self._c(f"{name}.branch_pool", pool)(_average(x))], axis=-1)

    def _b(self, name: str, x):
        three = self._c(f"{name}.branch3x3", 384, (3, 3), 2)(x)
        double = self._c(f"{name}.branch3x3dbl_2", 96, (3, 3), padding=(1, 1))(self._c(f"{name}.branch3x3dbl_1", 64)(x))
        double = self._c(f"{name}.branch3x3dbl_3", 96, (3, 3), 2)(double)
        return jnp.concatenate([three, double, _largest(x)], axis=-1)

    def _seven(self, name: str, x, width: int):
        """Also returns the 1 x 1 branch."""
        one = self._c(f"{name}.branch1x1", 192)(x)
        across, down = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        seven = self._c(f"{name}.branch7x7_1", width)(x)
        for index, (size, (kernel, pad)) in enumerate(zip((width, 192), (across, down), strict=True), 2):
            seven = self._c(f"{name}.branch7x7_{index}", size, kernel, padding=pad)(seven)
        double = self._c(f"{name}.branch7x7dbl_1", width)(x)
        sizes = (width, width, width, 192)
        for index, (size, (kernel, pad)) in enumerate(zip(sizes, (down, across, down, across), strict=True), 2):
            double = self._c(f"{name}.branch7x7dbl_{index}", size, kernel, padding=pad)(double)
        pool = self._c(f"{name}.branch_pool", 192)(_average(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1), one

    def _d(self, name: str, x):
        three = self._c(f"{name}.branch3x3_2", 320, (3, 3), 2)(self._c(f"{name}.branch3x3_1", 192)(x))
        seven = self._c(f"{name}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))(self._c(f"{name}.branch7x7x3_1", 192)(x))
        seven = self._c(f"{name}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))(seven)
        seven = self._c(f"{name}.branch7x7x3_4", 192, (3, 3), 2)(seven)
        return jnp.concatenate([three, seven, _largest(x)], axis=-1)

    def _e(self, name: str, x, pool):
        one, three = self._c(f"{name}.branch1x1", 320)(x), self._c(f"{name}.branch3x3_1", 384)(x)
        wide, tall = ((1, 3), (0, 1)), ((3, 1), (1, 0))
        double = self._c(f"{name}.branch3x3dbl_1", 448)(x)
        double = self._c(f"{name}.branch3x3dbl_2", 384, (3, 3), padding=(1, 1))(double)
        parts = [one]
        for root, source in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
            parts += [self._c(f"{name}.{root}{side}", 384, k, padding=p)(source) for side, (k, p) in (("a", wide), ("b", tall))]
        return jnp.concatenate([*parts, self._c(f"{name}.branch_pool", 192)(pool(x))], axis=-1)
