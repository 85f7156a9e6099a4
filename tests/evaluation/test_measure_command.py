"""`jaxdrl evaluate` and `jaxdrl sweep` as a user calls them."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from jaxdrl import cli, data, encoders, measure_command
from jaxdrl.config import default
from jaxdrl.errors import UserError
from jaxdrl.evaluation import frechet, inception_score, manifold, reference_files, spaces
from jaxdrl.evaluation.collect import collect
from jaxdrl.evaluation.image_sources import Files
from jaxdrl.evaluation.statistics import Moments
from jaxdrl.weights import model_directory
from tests.report import pages

SMALL = {"width": 16, "depth": 1, "num_heads": 2, "resolution": 28}


def _evaluate(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def _numbers(folder):
    return {name: number["value"] for name, number in json.loads((folder / "metrics.json").read_text())["metrics"].items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small DINOv2 with drawn weights, and two files of images."""
    folder = tmp_path_factory.mktemp("measured")
    network = encoders.create("dinov2-small", **SMALL)
    model_directory.save(folder / "dinov2", network, network.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    np.savez(folder / "real.npz", arr_0=rng.integers(0, 256, (60, 20, 20, 3), np.uint8), labels=np.arange(60) % 3)
    np.savez(folder / "fake.npz", arr_0=rng.integers(40, 216, (50, 20, 20, 3), np.uint8), labels=np.arange(50) % 3)
    return folder


def _features(place, name):
    space = spaces.published(["dinov2-small"], spaces.Weights([str(place / "dinov2")]))
    return np.array(collect(Files(place / f"{name}.npz"), space, None, keep=["dinov2-small"]).features["dinov2-small"])


@pytest.fixture
def own(place):
    return "--encoder=dinov2-small", f"--weights={place / 'dinov2'}", "--kd_subset_size=20", "--kd_subsets=4"


def test_two_files_of_images(place, own, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--samples",
        place / "fake.npz",
        "--reference",
        place / "real.npz",
        "--metrics",
        "fd,kd,prdc,accuracy,spectrum,drift",
    ]
    assert _evaluate(*arguments, *own, f"--out={out}") == 0
    found, fake, real = _numbers(out), _features(place, "fake"), _features(place, "real")
    assert found["fd"] == pytest.approx(frechet.frechet_from_features(real, fake), rel=1e-9)
    assert found["coverage"] == manifold.measure(real, fake).coverage and 0 <= found["accuracy"] <= 1
    assert found["spectrum"] > 0.1 and found["drift/contrast"] < 0.25
    printed = capsys.readouterr().out
    assert "50 images of fake.npz against" in printed and "metric" in printed
    kept = json.loads((out / "metrics.json").read_text())
    spec = kept["specifications"]["dinov2-small"]
    assert spec["size"] == 28 and spec["resize"] == "bicubic" and len(spec["fingerprint"]) == 64
    assert kept["samples"] == {"source": "fake.npz", "to_uint8": "stored", "labels": "of the file", "num": 50} | {
        "written": kept["samples"]["written"]
    }
    assert _evaluate(*arguments, *own, f"--out={out}") == 0  # nothing is computed twice
    assert json.loads((out / "metrics.json").read_text())["images_per_second"] is None and _numbers(out) == found
    more = [*arguments[:-1], "fd,fd-infinity"]
    assert _evaluate(*more, *own, f"--out={out}") == 0 and set(_numbers(out)) == {"fd", "fd-infinity"}


def test_folders_of_pictures_are_the_same(place, own, tmp_path):
    images = np.load(place / "fake.npz")["arr_0"]
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number:04d}.png")
    for samples, out in ((tmp_path / "pictures", "a"), (place / "fake.npz", "b")):
        arguments = ["--samples", samples, "--reference", place / "real.npz", "--metrics=fd", *own, f"--out={tmp_path / out}"]
        assert _evaluate(*arguments, "--batch_size=16") == 0
    assert _numbers(tmp_path / "a") == _numbers(tmp_path / "b")


def test_statistics_are_a_reference_with_a_specification(place, own, tmp_path, capsys):
    file = tmp_path / "train.npz"
    arguments = ["--samples", place / "real.npz", "--reference", place / "real.npz", "--metrics=fd,spectrum"]
    assert _evaluate(*arguments, *own, f"--out={tmp_path / 'r'}", f"--save_statistics={file}") == 0
    assert _numbers(tmp_path / "r")["fd"] == pytest.approx(0, abs=1e-10)
    assert _evaluate("--samples", place / "fake.npz", "--reference", file, "--metrics=fd", *own, f"--out={tmp_path / 'f'}") == 0
    exact = frechet.frechet_from_features(_features(place, "real"), _features(place, "fake"))
    assert _numbers(tmp_path / "f")["fd"] == pytest.approx(exact, rel=1e-9)
    assert _evaluate("--samples", place / "fake.npz", "--reference", file, "--metrics=kd", *own, f"--out={tmp_path / 'k'}") == 2
    assert "has no images, and no statistics for dinov2-small" in capsys.readouterr().err
    other = encoders.create("dinov2-small", **SMALL, kernel="bilinear")
    model_directory.save(tmp_path / "other", other, other.init(jax.random.key(1)))
    weights = ["--encoder=dinov2-small", f"--weights={tmp_path / 'other'}"]
    assert (
        _evaluate("--samples", place / "fake.npz", "--reference", file, "--metrics=fd", *weights, f"--out={tmp_path / 'o'}") == 2
    )
    error = capsys.readouterr().err
    assert "resize (bicubic and bilinear)" in error and "fingerprint" in error


def test_statistics_say_how_their_images_were_made(place, own, tmp_path, capsys):
    file = tmp_path / "train.npz"
    arguments = ["--samples", place / "real.npz", "--num=30", "--reference", place / "real.npz", "--metrics=fd"]
    assert _evaluate(*arguments, *own, f"--out={tmp_path / 'r'}", f"--save_statistics={file}") == 0
    said = reference_files.images_of(file)
    assert (said["source"], said["to_uint8"], said["num"]) == ("real.npz", "stored", 30)
    arguments = ["--samples", place / "fake.npz", "--metrics=fd", *own, "--reference"]
    assert _evaluate(*arguments, file, f"--out={tmp_path / 'a'}") == 0
    kept = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert kept["reference"]["images"] == said and not any("does not say" in warning for warning in kept["warnings"])
    capsys.readouterr()
    with np.load(file) as arrays:
        silent = {key: arrays[key] for key in arrays.files if key != "images"}
    with pytest.raises(UserError, match=r"differ in to_uint8 \(round and truncate\); labels \(balanced and drawn\)"):
        reference_files.require_comparable(
            {"to_uint8": "round", "labels": "balanced"}, {"to_uint8": "truncate", "labels": "drawn"}, file
        )
    reference_files.require_comparable({"to_uint8": "round"}, {"to_uint8": "stored"}, file)
    np.savez(tmp_path / "old.npz", **silent)
    assert reference_files.images_of(tmp_path / "old.npz") == {"num": 30}


def test_adms_reference_gives_statistics_and_images(place, tmp_path):
    """mu and sigma for FID, mu_s and sigma_s for sFID, arr_0 for what needs features; everybody's names are read."""
    rng = np.random.default_rng(1)
    mean, root = rng.normal(size=2048), rng.normal(size=(2048, 30)) * 0.05
    arrays = {"mu": mean, "sigma": root @ root.T, "mu_s": mean[:2023], "sigma_s": (root @ root.T)[:2023, :2023]}
    np.savez(tmp_path / "adm.npz", arr_0=np.load(place / "real.npz")["arr_0"][:12], **arrays)
    samples = tmp_path / "few.npz"
    np.savez(samples, arr_0=np.load(place / "fake.npz")["arr_0"][:12])
    arguments = ["--samples", samples, "--reference", tmp_path / "adm.npz", "--weights=random", f"--out={tmp_path / 'out'}"]
    assert _evaluate(*arguments, "--metrics=fid,sfid,is,prdc", "--batch_size=12") == 0
    found = _numbers(tmp_path / "out")
    own = spaces.published(["inception", "inception-spatial", "inception-logits"], spaces.Weights(["random"]))
    names = [space.name for space in own]
    fake = collect(Files(samples), own, None, keep=names, batch_size=12).features
    given = Moments.from_covariance(2, mean, root @ root.T)
    assert found["fid"] == pytest.approx(frechet.frechet_distance(given, Moments.of(fake["inception"])), rel=1e-9)
    given = Moments.from_covariance(2, mean[:2023], arrays["sigma_s"])
    assert found["sfid"] == pytest.approx(frechet.frechet_distance(given, Moments.of(fake["inception-spatial"])), rel=1e-9)
    assert found["is"] == pytest.approx(inception_score.inception_score(fake["inception-logits"])[0], rel=1e-6)
    real = collect(_First(12, place), own[:1], None, keep=["inception"], batch_size=12).features["inception"]
    assert found["precision"] == manifold.measure(real, fake["inception"]).precision
    np.savez(tmp_path / "meanflow.npz", ref_mu=mean, ref_sigma=arrays["sigma"])
    loaded = reference_files.load_space(tmp_path / "meanflow.npz", "inception", own[0].spec)
    np.testing.assert_allclose(loaded.covariance, arrays["sigma"], rtol=1e-12)
    assert reference_files.load_space(tmp_path / "meanflow.npz", "dinov2", own[0].spec) is None


class _First(Files):
    def __init__(self, num, place):
        super().__init__(place / "real.npz", num)


def test_samples_of_a_checkpoint(tiny_run, tmp_path):
    """The same images as `jaxdrl sample` writes, whatever the batches; memorisation, accuracy and the run's own judge."""
    checkpoint = ["--workdir", tiny_run, "--num=60", "--seed=3", "--guidance=1.5", "--interval=0.1,1", "--steps=4"]
    metrics = ["--metrics=fd,prdc,accuracy,memorisation", "--train=split:train", "--k=2", "--density_k=2"]
    assert _evaluate(*checkpoint, *metrics, f"--out={tmp_path / 'a'}", "--batch_size=16") == 0
    file = tmp_path / "samples.npz"
    sample = [
        "sample",
        f"--workdir={tiny_run}",
        "--num=60",
        "--seed=3",
        "--guidance=1.5",
        "--interval=0.1,1",
        "--steps=4",
        f"--out={file}",
    ]
    assert cli.main(sample) == 0
    files = ["--samples", file, "--reference=split:test", "--encoder=judge", "--workdir", tiny_run, f"--out={tmp_path / 'b'}"]
    assert _evaluate(*files, *metrics) == 0
    one, two = _numbers(tmp_path / "a"), _numbers(tmp_path / "b")
    assert one == pytest.approx(two, rel=1e-5) and {"fd", "recall", "memorisation", "accuracy/9"} <= set(one)
    kept = json.loads((tmp_path / "a" / "metrics.json").read_text())
    said, nearest = kept["samples"], kept["nearest_training_images"]
    assert len(nearest) == 20 and nearest[0]["distance"] <= nearest[-1]["distance"]
    assert (said["guidance"], said["interval"], said["labels"], said["to_uint8"]) == (1.5, [0.1, 1.0], "balanced", "round")


def test_a_sweep_finds_the_best_and_draws_it(tiny_run, tmp_path, capsys):
    arguments = [
        "sweep",
        f"--workdir={tiny_run}",
        "--num=40",
        "--scales=1,1.5,4",
        "--intervals=0:1,0.3:1",
        "--steps=3",
        f"--out={tmp_path}",
    ]
    assert cli.main([*arguments, "--metrics=fd,prdc", "--k=2", "--density_k=2"]) == 0
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert len(kept["points"]) == 5 and kept["best"]["fd"] == min(point["fd"] for point in kept["points"])
    page = (tmp_path / "sweep.html").read_text()
    assert page.count("<svg") >= 9 and "fd against" not in page.split("</h1>")[0] and "http" not in page.replace("http-equiv", "")
    pages.check(page)
    assert not list((tmp_path / "points").glob("*/samples"))
    capsys.readouterr()
    assert cli.main([*arguments, "--metrics=fd,prdc", "--k=2", "--density_k=2"]) == 0
    assert "image/s" not in capsys.readouterr().out  # every point was there
    assert cli.main([*arguments, "--metrics=fd", "--k=2", "--density_k=2"]) == 2
    assert "another metrics" in capsys.readouterr().err
    assert cli.main([*arguments[:2], "--metric=fid"]) == 2
    assert "'fid' is not among --metrics" in capsys.readouterr().err
    assert cli.main([*arguments[:2], "--guidance=2"]) == 2
    assert "--guidance is for `jaxdrl evaluate`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--samples={fake}"], "--reference is missing"),
        (["--samples={fake}", "--reference={real}"], "--weights is missing: inception"),
        (["--samples={fake}", "--reference={real}", "--metrics=fdi"], "'fdi' is unknown"),
        (["--samples={fake}", "--reference={real}", "--encoder=dino", "--metrics=fd", "--weights=random"], "'dino' is unknown"),
        (
            ["--samples={fake}", "--reference={real}", "--metrics=fd-dinov2", "--weights={dinov2}"],
            "needs the weights of dinov2-large",
        ),
        (["--samples={fake}", "--reference={real}", "--metrics=fd", "--encoder=judge"], "needs the --workdir"),
        (["--samples={fake}", "--reference=split:test", "--metrics=drift"], "give --config or --workdir"),
        (["--samples=nothing.npz", "--reference={real}", "--metrics=drift"], "neither an .npz file nor"),
        (["--samples={fake}", "--reference=nothing.npz", "--metrics=drift"], "has no images, and no statistics for drift"),
        (["--samples={fake}", "--reference={real}", "--metrics=drift", "--num=0"], "flag --num=0: 0 is not a positive integer"),
        (["--metrics=fid"], "--workdir is missing"),
        (["--bootstrap=5"], "--workdir is missing"),  # and not the stage
        (["--samples={fake}", "--reference={real}", "--metrics=drift", "--steps=4"], "--steps is for samples of a checkpoint"),
        (["--samples={fake}", "--reference={real}", "--metrics=drift", "--num=51"], "has 50 images, 51 are asked for"),
    ],
)
def test_mistakes_are_one_line(place, arguments, said, capsys, tmp_path):
    paths = {name: place / f"{name}.npz" for name in ("fake", "real")} | {"dinov2": place / "dinov2"}
    assert _evaluate(*(argument.format(**paths) for argument in arguments), f"--out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_images_of_some_classes_say_so(tmp_path):
    config, values = default(), flags.FlagValues()
    config.name = "mine"  # the default one says of no data set
    flags.DEFINE_string("workdir", str(tmp_path), "", flag_values=values)
    values.mark_as_parsed()
    data.prepare(config.data, tmp_path / "data")
    whole = measure_command.images("split:test", values, config).description
    config.data.update(classes=("3", "0"), num_classes=2)
    found = measure_command.images("split:test", values, config)
    assert found.description == whole | {"classes": ["3", "0"]} and len(found.source) < 200
    (_, labels), *_ = found.source.batches(0, 50, 50)
    assert set(labels) == {0, 1}
