"""Beside the programs that people report numbers with: torch-fidelity, pytorch-fid, clean-fid and timm. `pytest -m oracles`.

In an environment with the test extra, on a CPU:

    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install --no-deps torchvision==0.28.0 torch-fidelity==0.4.0 pytorch-fid==0.3.0 clean-fid==0.1.35 timm==1.0.31
    pip install tqdm requests huggingface_hub "scipy<1.18"
    pytest -m oracles

torchvision's wheel is built for CUDA: beside a CPU's torch it does not import until the operators it looks for are declared (`_declare`).
"""

import importlib
import json
import warnings
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdrl import cli
from jaxdrl.evaluation import frechet, inception_score, kernel, manifold, spaces
from jaxdrl.evaluation.collect import collect
from jaxdrl.evaluation.image_sources import Files
from jaxdrl.evaluation.statistics import Moments

pytestmark = [pytest.mark.oracles, pytest.mark.filterwarnings("ignore")]
NUM = 24


def _declare() -> None:
    import torch

    global _library
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        _library.define(name)


@pytest.fixture(scope="module")
def oracles():
    pytest.importorskip("torch")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _declare()
    except ImportError:
        pytest.skip("torchvision is not installed; the module says how")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: pytest.importorskip(name) for name in ("torch_fidelity", "pytorch_fid", "cleanfid", "timm")}


@pytest.fixture(scope="module")
def files(oracles, tmp_path_factory):
    """Random Inception weights in the published file's form, and two sets of pictures as folders and as .npz."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("oracles")
    with (
        mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {}),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None),
    ):
        network = FeatureExtractorInceptionV3("x", ["2048"])
    rng, state = np.random.default_rng(0), {}
    for name, value in network.state_dict().items():
        shape = tuple(value.shape)
        if name.endswith("running_var"):
            drawn = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            drawn = rng.uniform(0.8, 1.2, shape)
        elif value.dim() > 1:
            drawn = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            drawn = 0.1 * rng.standard_normal(shape)
        state[name] = torch.from_numpy(np.asarray(drawn, np.float32)) if value.is_floating_point() else value
    torch.save(state, folder / "inception.pth")
    assert (
        cli.main(["convert", "--model=inception-v3-fid", f"--from={folder / 'inception.pth'}", f"--to={folder / 'inception'}"])
        == 0
    )
    for number, name in enumerate(("fake", "real")):
        smooth = rng.uniform(0, 255, (NUM, 8, 8, 3)).astype(np.uint8)
        images = np.stack([np.asarray(Image.fromarray(part).resize((64, 64), Image.Resampling.BICUBIC)) for part in smooth])
        images = np.clip(images.astype(int) + rng.integers(-20 * number, 20 * number + 1, images.shape), 0, 255).astype(np.uint8)
        np.savez(folder / f"{name}.npz", arr_0=images)
        (folder / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{index:03d}.png")
    return folder


def _features(files, name, *wanted):
    found = spaces.published(wanted, spaces.Weights([str(files / "inception")]))
    return collect(Files(files / f"{name}.npz"), found, None, keep=list(wanted), batch_size=8).features


def _relative(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def test_inception_features_and_all_four_metrics_are_torch_fidelitys(oracles, files):
    """From the pictures to the printed number, through the command line on our side and `calculate_metrics` on theirs."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = str(files / "inception.pth")
    network = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], path, feature_extractor_internal_dtype="float64")
    images = np.load(files / "fake.npz")["arr_0"]
    with torch.no_grad():
        pool, logits = (part.double().numpy() for part in network(torch.from_numpy(images.transpose(0, 3, 1, 2))))
    mine = _features(files, "fake", "inception", "inception-logits")
    assert _relative(mine["inception"], pool) < 1e-6 and _relative(mine["inception-logits"], logits) < 1e-6

    theirs = oracles["torch_fidelity"].calculate_metrics(
        input1=str(files / "fake"), input2=str(files / "real"), cuda=False, isc=True, fid=True, kid=True, prc=True, verbose=False,
        kid_subset_size=20, kid_subsets=5, feature_extractor="inception-v3-compat", feature_extractor_weights_path=path, feature_extractor_internal_dtype="float64", cache=False,
    )  # fmt: skip
    out = files / "out"
    arguments = [
        "evaluate",
        f"--samples={files / 'fake'}",
        f"--reference={files / 'real.npz'}",
        f"--weights={files / 'inception'}",
    ]
    arguments += [
        "--metrics=fid,is-torch-fidelity,kid,prdc",
        "--kd_subsets=5",
        "--kd_subset_size=20",
        f"--out={out}",
        "--batch_size=8",
    ]
    assert cli.main(arguments) == 0
    found = {name: number["value"] for name, number in json.loads((out / "metrics.json").read_text())["metrics"].items()}
    # 24 pictures in 2048 dimensions: the root of a singular product is good for four digits, and exact by singular values of the samples.
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    with torch.no_grad():
        other = network(torch.from_numpy(np.load(files / "real.npz")["arr_0"].transpose(0, 3, 1, 2)))[0].double().numpy()
    one, two = ((part - part.mean(0)) / np.sqrt(NUM - 1) for part in (pool, other))
    root = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    exact = ((pool.mean(0) - other.mean(0)) ** 2).sum() + (one**2).sum() + (two**2).sum() - 2 * root
    assert found["fid"] == pytest.approx(exact, rel=1e-6)
    assert found["is-torch-fidelity"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    # torch-fidelity sums the kernel of float32 features in float32.
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (found["precision"], found["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_pytorch_fids_and_clean_fids_inputs(oracles, files, monkeypatch):
    import torch
    from cleanfid.resize import make_resizer
    from pytorch_fid import inception as pytorch_inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = torch.load(files / "inception.pth")
    images = np.load(files / "fake.npz")["arr_0"]
    monkeypatch.setattr(pytorch_inception, "load_state_dict_from_url", lambda *args, **options: state)
    with torch.no_grad():
        network = pytorch_inception.InceptionV3([3]).eval()
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255)[0].squeeze().numpy()
        resize = make_resizer("PIL", False, "bicubic", (299, 299))
        resized = torch.from_numpy(np.stack([resize(image) for image in images]).transpose(0, 3, 1, 2))
        clean = FeatureExtractorInceptionV3("x", ["2048"], str(files / "inception.pth"))
        monkeypatch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.interpolate_bilinear_2d_like_tensorflow1x", lambda x, **options: resized
        )
        cleaned = clean(torch.from_numpy(images.transpose(0, 3, 1, 2)))[0].numpy()
    mine = _features(files, "fake", "inception-pytorch-fid", "inception-clean-fid", "inception")
    assert _relative(mine["inception-pytorch-fid"], expected) < 1e-5
    assert _relative(mine["inception-clean-fid"], cleaned) < 1e-5
    assert _relative(mine["inception"], expected) > 1e-3 and _relative(mine["inception"], cleaned) > 1e-3


def test_metrics_on_equal_features(oracles):
    """FD, IS, KID, precision and recall of torch-fidelity, pytorch-fid and clean-fid: 1e-6 relative on the same float64 features."""
    import torch
    from cleanfid.fid import frechet_distance as clean
    from pytorch_fid.fid_score import calculate_frechet_distance as pytorch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = np.random.default_rng(0)
    fake, real = rng.normal(size=(1500, 64)) * 0.9 + 0.1, rng.normal(size=(2000, 64))
    one, two = Moments.of(fake), Moments.of(real)
    mine = frechet.frechet_distance(two, one)
    for other in (pytorch, clean):
        assert mine == pytest.approx(float(other(one.mean, one.covariance, two.mean, two.covariance)), rel=1e-6)
    tensors = [torch.from_numpy(part) for part in (fake, real)]
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(part) for part in tensors), verbose=False)
    assert mine == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    options = {"kid_subsets": 10, "kid_subset_size": 300, "verbose": False, "rng_seed": 2020}
    kid = kid_features_to_metric(*tensors, **options)
    expected = kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]
    assert kernel.kernel_distance(real, fake, subsets=10, subset_size=300) == pytest.approx(expected, rel=1e-6)
    isc = isc_features_to_metric(tensors[0])
    expected = isc["inception_score_mean"], isc["inception_score_std"]
    assert inception_score.inception_score(fake, "torch-fidelity") == pytest.approx(expected, rel=1e-6)
    prc = prc_features_to_metric(*tensors, prc_neighborhood=3, prc_batch_size=500, save_cpu_ram=False, verbose=False)
    found = manifold.measure(real, fake, closed=True)
    assert (found.precision, found.recall) == pytest.approx((prc["precision"], prc["recall"]), rel=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_clip_224.openai"])
def test_fd_loss_pads_and_resamples_as_timm(oracles, name, tmp_path):
    """64 pixels are no multiple of 14: timm pads with zeros behind the normalisation and resamples positions antialiased."""
    import timm
    import torch

    from jaxdrl import encoders
    from jaxdrl.encoders.preprocess import Preprocess
    from jaxdrl.encoders.vit import resample_positions

    torch.manual_seed(0)
    network = timm.create_model(
        name, pretrained=False, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True, depth=1
    ).eval()
    patch = network.patch_embed.patch_size[0]
    side, inner = -(-100 // patch) * patch, 100
    images = np.random.default_rng(0).uniform(-1, 1, (2, 72, 72, 3)).astype(np.float32)
    mean, std = encoders.published.IMAGENET["mean"], encoders.published.IMAGENET["std"]
    zero_one = torch.from_numpy(0.5 * (images.transpose(0, 3, 1, 2) + 1))
    resized = torch.nn.functional.interpolate(zero_one, (inner, inner), mode="bicubic", antialias=True, align_corners=False)
    resized = (resized - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    padded = torch.nn.functional.pad(resized, (0, side - inner, 0, side - inner)).numpy()
    how = Preprocess(size=(side, side), inner=(inner, inner), mean=mean, std=std)
    np.testing.assert_allclose(np.asarray(how(jnp.asarray(images))).transpose(0, 3, 1, 2), padded, atol=1e-4)
    with torch.no_grad():
        tokens = network.patch_embed(resized)
        expected = network._pos_embed(tokens) - torch.cat([torch.zeros(2, 1, tokens.shape[-1]), tokens.flatten(1, 2)], 1)
    table = network.pos_embed.detach().numpy()[0]
    table = resample_positions(table, (side // patch, side // patch), antialias=True)
    table[:1] += network.cls_token.detach().numpy()[0]
    np.testing.assert_allclose(table, expected[0].numpy(), atol=2e-6)
