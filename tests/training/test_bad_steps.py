"""Steps that are not finite, or far too large: stopped at, skipped or rolled back, with their batch in a file; without any, the same bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes
from jaxdrl.errors import UserError
from jaxdrl.training import bad_steps, mesh
from jaxdrl.training.context import Run
from jaxdrl.training.metrics import MetricWriter, read_metrics
from jaxdrl.training.stages import data as data_stage
from jaxdrl.training.stages import pretrain
from jaxdrl.weights import files


def _config(policy="stop", factor=0.0, row=5):
    config = recipes.tiny(jaxdrl_config.default())
    config.pretrain.update(steps=20, decay_steps=0, curve_every=10, batch_size=10)
    config.runtime.update(on_bad_step=policy, spike_factor=factor, bad_steps_in_a_row=row, checkpoint_seconds=0.0)
    return config


def _run(config, folder):
    folder.mkdir(exist_ok=True)
    return Run(config=config, workdir=folder, mesh=mesh.create_mesh(), writer=MetricWriter(folder))


def _account(folder, policy="skip", factor=4.0, row=2, norms=(), step=0, stage="pretrain"):
    run = _run(_config(policy, factor, row), folder)
    for number, norm in enumerate(norms, 1):
        run.writer.write(stage, number, {"gradient_norm": norm})
    run.writer.flush()
    return bad_steps.BadSteps(run, stage, step)


@pytest.mark.parametrize("settings", [{"policy": "ignore"}, {"factor": 0.5}, {"row": 0}])
def test_settings_out_of_range(settings, tmp_path):
    with pytest.raises(UserError, match=r"config\.runtime"):
        _account(tmp_path, **settings)


def test_what_is_bad(tmp_path):
    bad = _account(tmp_path, norms=[1.0, 3.0] * 4)
    assert bad.limit == np.inf and bad.judge(1.0, 1e9) == "" and "gradient norm is inf" in bad.judge(1.0, np.inf)
    assert "loss is nan" in bad.judge(np.nan, 1.0)
    bad.seen(2.0), bad.seen(2.0), bad.seen(np.nan)
    assert bad.limit == 8.0 and bad.judge(1.0, 8.0) == "" and "its median (2)" in bad.judge(1.0, 8.1)
    assert _account(tmp_path, factor=0.0, norms=[1.0] * 12).limit == np.inf
    for _ in range(100):
        bad.seen(5.0)
    assert bad.limit == 20.0  # of the last 100 alone


def test_too_many_in_a_row_end_the_run_also_after_a_resume(tmp_path):
    bad = _account(tmp_path)
    for step in (3, 5, 6):
        bad.found(step, "the loss is nan", {"loss": np.nan}, {"image": np.full((2, 2), step)})
    assert np.load(tmp_path / "pretrain/bad_step_6.npz")["image"][0, 0] == 6
    resumed = _account(tmp_path, step=6)
    with pytest.raises(UserError, match=r"step 7.*bad_step_7\.npz.*number 3 in a row"):
        resumed.found(7, "the loss is nan", {"loss": np.nan}, {})
    _account(tmp_path, step=6).found(8, "the loss is nan", {"loss": np.nan}, {})  # 7 was good


def test_every_rollback_has_a_key_of_its_own(tmp_path):
    key, keys = jax.random.key(0), []
    for step in (9, 4, 12, 11):
        bad = _account(tmp_path, policy="rollback")
        keys.append(tuple(np.asarray(jax.random.key_data(bad.key(key))).tolist()))
        with pytest.raises(bad_steps.GoBack):
            bad.found(step, "the loss is nan", {"loss": np.nan}, {})
    assert keys[0] == tuple(np.asarray(jax.random.key_data(key)).tolist()) and len(set(keys)) == 4
    kept = json.loads((tmp_path / "pretrain/rollbacks.json").read_text())
    assert [rollback["step"] for rollback in kept] == [9, 4, 12, 11]
    with pytest.raises(UserError, match="in a row"):  # 9, 12 and 11 were at this step or behind it
        _account(tmp_path, policy="rollback").found(8, "the loss is nan", {"loss": np.nan}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains 20 steps under a policy, where images of one batch are replaced; returns folder and state."""
    data_folder = tmp_path_factory.mktemp("data")

    def train(folder, replaced=None, **settings):
        config = _config(**settings)
        config.data.directory = str(data_folder)
        run = _run(config, folder)
        data_stage.run(run)
        with pytest.MonkeyPatch.context() as patch, jax.set_mesh(run.mesh):
            read, left = pretrain.data.Batches.stacked, [replaced]

            def stacked(batches, start, count):
                found = read(batches, start, count)
                if left[0] is not None and start <= left[0][0] < start + count:
                    found["image"][left[0][0] - start] *= left[0][1]
                    left[0] = left[0] if settings.get("policy") != "rollback" else None
                return found

            patch.setattr(pretrain.data.Batches, "stacked", stacked)
            try:
                return pretrain.train(run, "pretrain", pretrain.initial_state(config), 0, 20, curve=False)
            finally:
                run.writer.close()

    return train


@pytest.mark.slow
def test_without_a_bad_step_every_policy_gives_the_same_bits(trained, tmp_path):
    states = [trained(tmp_path / policy, policy=policy, factor=1e4) for policy in bad_steps.POLICIES]
    assert len({files.fingerprint(state) for state in states}) == 1
    assert not list(tmp_path.rglob("bad_step_*"))


@pytest.mark.slow
def test_a_bad_batch_while_the_generator_is_trained(trained, tmp_path, capsys):
    with pytest.raises(UserError, match=r"pretrain: step 13: the loss is nan.*bad_step_13\.npz"):
        trained(tmp_path / "stop", (12, np.nan))
    state = trained(tmp_path / "skip", (12, np.nan), policy="skip")
    assert int(state.step) == 20 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert int(jax.tree.leaves(state.opt_state)[0]) == 19  # Adam has counted one less
    kept = np.load(tmp_path / "skip/pretrain/bad_step_13.npz")
    assert kept["image"].shape == (10, 8, 8, 1) and np.isnan(kept["image"]).any() and len(kept["index"]) == 10
    lines = read_metrics(tmp_path / "skip")
    assert [line["step"] for line in lines if line["stage"] == "pretrain.bad"] == [13]
    assert all(np.isfinite(line["loss"]) for line in lines if line["stage"] == "pretrain")
    state = trained(tmp_path / "rollback", (12, np.nan), policy="rollback")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)) and int(jax.tree.leaves(state.opt_state)[0]) == 20
    assert "going back to the last checkpoint" in capsys.readouterr().out
    assert files.fingerprint(state) != files.fingerprint(trained(tmp_path / "plain"))


def test_a_bad_step_changes_nothing_but_the_counter(tmp_path):
    run = _run(_config(), tmp_path)
    steps = pretrain._compiled(run, pretrain._optimizer(run.config))
    state = pretrain.initial_state(run.config)
    images, labels = jnp.ones((2, 10, 8, 8, 1)), jnp.zeros((2, 10), jnp.int32)
    with jax.set_mesh(run.mesh):
        given = jax.tree.map(jnp.copy, state)  # which the call donates
        after, found = steps(given, ({}, {}), images, labels, jax.random.key(0), np.float32(0.0))
        moved, fine = steps(jax.tree.map(jnp.copy, state), ({}, {}), images, labels, jax.random.key(0), np.float32(np.inf))
    assert found["bad"].tolist() == [True, True] and fine["bad"].tolist() == [False, False]
    assert int(after.step) == 2 and files.fingerprint(after.params) == files.fingerprint(state.params)
    assert files.fingerprint(after.opt_state) == files.fingerprint(state.opt_state)
    assert files.fingerprint(after.ema) == files.fingerprint(state.ema) != files.fingerprint(moved.ema)
