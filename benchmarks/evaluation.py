r"""Measuring, timed beside the programs that people measure with.

    python benchmarks/evaluation.py [--only=images,frechet,manifold,stream] [--code=DIR] [--num=64] [--size=50000]

images    collecting features and statistics of uint8 images of 256 pixels, files to moments, in images a second: Inception beside
          torch-fidelity's (in a clone DIR/torch-fidelity), DINOv2-L beside transformers', the same random weights and cores
frechet   the distance at 2048 dimensions from two sets of moments, beside scipy's sqrtm of the product
manifold  precision, recall, density and coverage at 2048 dimensions, beside prdc at 10 000 x 10 000 (prdc holds 50 000 x 50 000 float64
          distances, 20 GB, at --size) and ours at --size x 10 000: seconds, and peak memory of a process that does nothing else
stream    50 000 images of 256 pixels (9.8 GB) out of an .npz: peak memory of `jaxdrl evaluate`
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
PARTS = ("images", "frechet", "manifold", "stream")


def main() -> None:
    """Runs the parts, each in a process of its own where memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=PARTS, type=lambda text: text.split(","))
    parser.add_argument("--code", type=Path, help="where torch-fidelity is cloned")
    parser.add_argument("--num", default=64, type=int, help="images a round")
    parser.add_argument("--size", default=50000, type=int, help="samples")
    parser.add_argument("--manifold", nargs=3, metavar=("WHO", "REAL", "FAKE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.manifold:
        print(json.dumps(_manifold(options.manifold[0], int(options.manifold[1]), int(options.manifold[2]))))
        return
    for part in options.only:
        {"images": images, "frechet": frechet, "manifold": manifold, "stream": stream}[part](options)


def images(options: argparse.Namespace) -> None:
    """Images a second, files to statistics.

    Args:
        options: The command line.
    """
    import jax.numpy as jnp
    import torch

    from benchmarks.encoders import original
    from jaxdrl import encoders
    from jaxdrl.evaluation.collect import Network, Space, collect
    from jaxdrl.evaluation.image_sources import Files
    from jaxdrl.evaluation.statistics import Moments
    from jaxdrl.weights import from_torch

    print("| encoder | jax images/s | torch images/s | jax / torch | relative difference of the mean |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, arr_0=np.random.default_rng(0).integers(0, 256, (options.num, 256, 256, 3), np.uint8))
        for name in ("inception-v3-fid", "dinov2-large"):
            network, state, pooled = original(name, options, torch)
            encoder = encoders.create(name)
            params = from_torch(encoder, state, place=jnp.asarray)
            apply = lambda params, images, labels, encoder=encoder: encoder.features(params, images)  # noqa: E731
            space = Space(name=name, spec=encoder.spec(""), network=Network(params=params, apply=apply), output="pooled")
            collect(Files(file, 8), [space], None, batch_size=8)  # compiles
            began = time.perf_counter()
            found = collect(Files(file), [space], None, batch_size=8)
            ours = options.num / (time.perf_counter() - began)
            began, features = time.perf_counter(), []
            everything = np.load(file)["arr_0"]
            with torch.no_grad():
                for start in range(0, options.num, 8):
                    chw = torch.from_numpy(np.ascontiguousarray(everything[start : start + 8].transpose(0, 3, 1, 2)))
                    features.append(np.asarray(_theirs(name, network, pooled, encoder, chw, torch)))
            theirs_moments = Moments.of(np.concatenate(features))
            theirs = options.num / (time.perf_counter() - began)
            gap = np.linalg.norm(found.moments[name].mean - theirs_moments.mean) / np.linalg.norm(theirs_moments.mean)
            print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {gap:.1e} |", flush=True)


def _theirs(name: str, network, pooled, encoder, chw, torch):
    """Features of bytes; torch-fidelity's module resizes by itself, transformers' takes prepared pixels."""
    if name.startswith("inception"):
        return network(chw)[0]
    how = encoder.preprocess
    resized = torch.nn.functional.interpolate(chw.float() / 255, how.size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
    return pooled(network, (resized - mean) / std)


def frechet(options: argparse.Namespace) -> None:
    """The algebra at 2048 dimensions.

    Args:
        options: The command line.
    """
    import scipy.linalg

    from jaxdrl.evaluation import frechet as ours
    from jaxdrl.evaluation.statistics import Moments

    del options
    rng, dim = np.random.default_rng(0), 2048
    mix = rng.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / 150)
    one, two = (Moments.of(rng.normal(size=(8000, dim)) @ mix.T * scale + shift) for scale, shift in ((1.0, 0.0), (1.1, 0.05)))
    seconds, values = {}, {}
    began = time.perf_counter()
    reference = ours.Reference(one)
    seconds["jaxdrl, reference's factor"] = time.perf_counter() - began
    for _ in range(3):
        began = time.perf_counter()
        values["jaxdrl"] = reference.distance(two)
        seconds["jaxdrl"] = min(seconds.get("jaxdrl", np.inf), time.perf_counter() - began)
    began = time.perf_counter()
    root = scipy.linalg.sqrtm(one.covariance @ two.covariance)
    difference = one.mean - two.mean
    values["scipy"] = float(difference @ difference + np.trace(one.covariance + two.covariance) - 2 * np.trace(root).real)
    seconds["scipy sqrtm"] = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "values": values}, indent=2))
    whole = seconds["jaxdrl"] + seconds["jaxdrl, reference's factor"]
    print(
        f"scipy / jaxdrl: {seconds['scipy sqrtm'] / whole:.1f} x; {seconds['scipy sqrtm'] / seconds['jaxdrl']:.1f} x with the factor kept"
    )


def manifold(options: argparse.Namespace) -> None:
    """Precision, recall, density and coverage, in processes of their own.

    Args:
        options: The command line.
    """
    print("| who | real x fake | seconds | peak GiB | precision, recall, density, coverage |\n|---|---|---|---|---|")
    for who, real, fake in (("prdc", 10000, 10000), ("jaxdrl", 10000, 10000), ("jaxdrl", 10000, options.size)):
        command = [sys.executable, "-W", "ignore", __file__, "--manifold", who, str(real), str(fake)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = json.loads(lines[-1])
        numbers = ", ".join(f"{value:.4f}" for value in found["numbers"])
        print(f"| {who} | {real} x {fake} | {found['seconds']:.0f} | {found['peak']:.2f} | {numbers} |", flush=True)


def _manifold(who: str, num_real: int, num_fake: int) -> dict:
    rng = np.random.default_rng(0)
    mix = (rng.normal(size=(2048, 64)) * 0.05).astype(np.float32)
    real, fake = (
        (rng.normal(size=(num, 64)).astype(np.float32) * scale) @ mix.T + 0.4
        for num, scale in ((num_real, 1.0), (num_fake, 0.95))
    )
    began = time.perf_counter()
    if who == "prdc":
        import prdc

        three, five = (prdc.compute_prdc(real, fake, nearest_k=k) for k in (3, 5))
        numbers = [three["precision"], three["recall"], five["density"], five["coverage"]]
    else:
        from jaxdrl.evaluation import manifold as ours

        numbers = list(ours.measure(real, fake))
    return {"seconds": time.perf_counter() - began, "peak": peak_gib(), "numbers": [float(value) for value in numbers]}


def peak_gib() -> float:
    """Largest memory of this process in GiB. `ru_maxrss` would be that of the process that started it, where that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def stream(options: argparse.Namespace) -> None:
    """Peak memory of measuring a file of 9.8 GB.

    Args:
        options: The command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, noise = (
            Path(folder) / "samples.npz",
            np.random.default_rng(0).integers(0, 256, (100, 256, 256, 3), np.uint8).tobytes(),
        )
        with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (options.size, 256, 256, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(options.size // 100):
                member.write(noise)
        program = (
            "import sys; from jaxdrl import cli; from benchmarks.evaluation import peak_gib; code = cli.main(sys.argv[1:]); "
            "print(peak_gib()); sys.exit(code)"
        )
        arguments = ["evaluate", f"--samples={file}", f"--reference={file}", "--metrics=drift", f"--out={folder}/out"]
        began = time.perf_counter()
        command, root = [sys.executable, "-W", "ignore", "-c", program, *arguments], Path(__file__).parent.parent
        running = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        size, seconds = file.stat().st_size / 1e9, time.perf_counter() - began
        peak = float(running.stdout.splitlines()[-1])
        print(f"{size:.1f} GB, {options.size} images, read twice in {seconds:.0f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
