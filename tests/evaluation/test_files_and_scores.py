"""Inception Score, drift statistics, samples and reference statistics in files."""

import os
import pickle
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdrl import data
from jaxdrl.errors import UserError
from jaxdrl.evaluation import drift, image_sources, reference_files, sample_files
from jaxdrl.evaluation.collect import UNKNOWN
from jaxdrl.evaluation.inception_score import inception_score


def test_inception_score_in_closed_form():
    """k classes equally often, each for certain: k. The same for every image: 1. In between, the formula written out."""
    certain = np.eye(8)[np.arange(4000) % 8] * 200.0
    assert inception_score(certain)[0] == pytest.approx(8, rel=1e-6)
    assert inception_score(np.zeros((100, 8)))[0] == pytest.approx(1)
    logits = np.random.default_rng(0).standard_normal((50, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))
    assert inception_score(logits + 300)[0] == pytest.approx(expected, rel=1e-10)


def test_inception_scores_splits():
    """ADM cuts in order every 5000; torch-fidelity shuffles with its seed and cuts in ten."""
    logits = np.random.default_rng(0).standard_normal((7000, 5)) + np.linspace(0, 3, 7000)[:, None] * np.eye(5)[0]
    parts = [inception_score(part)[0] for part in (logits[:5000], logits[5000:])]
    assert inception_score(logits) == pytest.approx((np.mean(parts), np.std(parts)))
    order = np.random.RandomState(2020).permutation(7000)
    parts = [inception_score(logits[order[i * 700 : (i + 1) * 700]])[0] for i in range(10)]
    assert inception_score(logits, "torch-fidelity") == pytest.approx((np.mean(parts), np.std(parts)))
    with pytest.raises(ValueError, match="rule"):
        inception_score(logits, "mean")
    with pytest.raises(ValueError, match="at least 10"):
        inception_score(logits[:9])


def test_drift_statistics_of_plain_colours():
    """Red, grey and black, and a picture that is half white, half black."""
    colours = {"red": (1.0, -1.0, -1.0), "grey": (0.0, 0.0, 0.0), "black": (-1.0, -1.0, -1.0)}
    images = np.stack([np.broadcast_to(np.array(c, np.float32), (4, 4, 3)) for c in colours.values()])
    found = {name: np.asarray(values) for name, values in drift.statistics(jnp.asarray(images)).items()}
    np.testing.assert_allclose(found["brightness"], [0.299, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(found["saturation"], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["contrast"], 0, atol=1e-6)
    np.testing.assert_allclose(found["colourfulness"], [0.3 * np.hypot(1, 0.5), 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["whiteness"], [0, 0.5, 0], atol=1e-6)
    half = np.full((1, 2, 2, 3), 3.0, np.float32)  # what lies outside is clipped
    half[:, 0] = -1
    found = drift.statistics(jnp.asarray(half))
    assert float(found["contrast"][0]) == pytest.approx(0.5) and float(found["whiteness"][0]) == pytest.approx(0.5)
    assert tuple(found) == drift.NAMES


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_parts(images, tmp_path, save):
    save(tmp_path / "s.npz", arr_0=images, labels=np.arange(11))
    parts = list(sample_files.read(tmp_path / "s.npz", 4))
    assert [len(part) for part in parts] == [4, 4, 3] and sample_files.count(tmp_path / "s.npz") == 11
    np.testing.assert_array_equal(np.concatenate(parts), images)


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
def test_a_part_is_read_with_its_labels(images, tmp_path, form):
    """From any image to any other, as a process of many does or an interrupted one."""
    path, labels = tmp_path / "s.npz", np.arange(11)[::-1]
    if form == "folder":
        path = tmp_path
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    else:
        (np.savez if form == "stored" else np.savez_compressed)(path, arr_0=images, labels=labels)
    parts = list(image_sources.Files(path).batches(3, 10, 3))
    assert [len(part) for part, _ in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), images[3:10])
    expected = np.full(7, UNKNOWN) if form == "folder" else labels[3:10]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), expected)
    assert len(image_sources.Files(path, 4)) == 4
    with pytest.raises(UserError, match="has 11 images, 12 are asked for"):
        image_sources.Files(path, 12)


def test_labels_that_do_not_fit_are_refused(images, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=images, arr_1=np.arange(10))
    with pytest.raises(UserError, match="10 labels for 11 images"):
        image_sources.Files(tmp_path / "s.npz")


def test_some_of_a_split(images):
    source = data.sources.InMemory(images, np.arange(11))
    whole, some = image_sources.Split(source), image_sources.Split(source, 5)
    assert len(whole) == 11 and len(some) == 5
    (chosen, labels), *_ = some.batches(0, 5, 8)
    assert (np.diff(labels) > 0).all()
    np.testing.assert_array_equal(chosen, images[labels])
    np.testing.assert_array_equal(np.concatenate([part for part, _ in whole.batches(2, 11, 4)]), images[2:])


def test_folders_are_read_in_the_order_of_names(images, tmp_path):
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    np.testing.assert_array_equal(np.concatenate(list(sample_files.read(tmp_path, 4))), images)
    assert sample_files.count(tmp_path) == 11
    Image.fromarray(images[0][:3]).save(tmp_path / "999.png")
    with pytest.raises(UserError, match=r"999\.png is \(3, 5\)"):
        list(sample_files.read(tmp_path, 4))
    (tmp_path / "999.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        list(sample_files.read(tmp_path, 20))


def test_what_is_no_file_of_samples_is_told(images, tmp_path):
    np.savez(tmp_path / "floats.npz", arr_0=images.astype(np.float32))
    np.savez(tmp_path / "other.npz", images=images)
    np.savez(tmp_path / "whole.npz", arr_0=images)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-200])
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("floats.npz", "must be uint8"),
        ("other.npz", "no array arr_0"),
        ("cut.npz", "is it whole"),
        ("none.npz", "neither"),
        ("empty", "holds no"),
    ):
        with pytest.raises(UserError, match=said):
            list(sample_files.read(tmp_path / name))
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    with pytest.raises(UserError, match="damaged behind image"):
        list(sample_files.read(tmp_path / "flipped.npz"))


def test_a_large_file_needs_no_memory(tmp_path):
    """A file of 300 MB in a process that may grow by 150 MB."""
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1600, 256, 256, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(1600):
            member.write(bytes(256 * 256 * 3))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from jaxdrl.evaluation import sample_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(len(part) for part in sample_files.read(Path(sys.argv[1]), 50)) == 1600\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "large.npz")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 150 * 1024


def test_everybodys_reference_statistics(tmp_path):
    rng = np.random.default_rng(0)
    mean, half = rng.standard_normal(6), rng.standard_normal((6, 6))
    covariance = half @ half.T
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=mean[:3], sigma_s=covariance[:3, :3])
    np.savez(tmp_path / "meanflow.npz", ref_mu=mean, ref_sigma=covariance)
    (tmp_path / "edm2.pkl").write_bytes(
        pickle.dumps({"fid": {"mu": mean, "sigma": covariance}, "fd_dinov2": {"mu": mean[:2], "sigma": covariance[:2, :2]}})
    )
    for name in ("adm.npz", "meanflow.npz", "edm2.pkl"):
        found = reference_files.load(tmp_path / name)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.covariance, covariance)
        assert found.source.startswith(name)
    assert reference_files.load(tmp_path / "adm.npz", "sfid").mean.shape == (3,)
    assert reference_files.load(tmp_path / "edm2.pkl", "fd_dinov2").covariance.shape == (2, 2)
    with pytest.raises(UserError, match="no statistics for 'sfid'; it has ref_mu"):
        reference_files.load(tmp_path / "meanflow.npz", "sfid")
    with pytest.raises(UserError, match="it has fid, fd_dinov2"):
        reference_files.load(tmp_path / "edm2.pkl", "fd_clip")


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_bad_reference_files_are_told_and_run_nothing(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"fid": _Evil(str(tmp_path / "made"))}))
    with pytest.raises(UserError, match="wants to run code"):
        reference_files.load(tmp_path / "evil.pkl")
    assert not (tmp_path / "made").exists()
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "odd.npz").read_bytes()[:-30])
    for name, said in (
        ("odd.npz", "its covariance"),
        ("nan.npz", "not finite"),
        ("cut.npz", "is it whole"),
        ("none.npz", "missing"),
    ):
        with pytest.raises(UserError, match=said):
            reference_files.load(tmp_path / name)
