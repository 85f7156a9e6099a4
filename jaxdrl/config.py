"""Every key of a run, with its default: recipes in `configs/` start from `default()` and change it with `jaxdrl.recipes`.

The tree is an `ml_collections.ConfigDict`, so an unknown key or a value of another type raises when it is set.
"""

from typing import Any, TypeAlias

import ml_collections

# A `ConfigDict`, locked or not: its attributes are known at run time only, so a type checker is told nothing.
Config: TypeAlias = Any


def default() -> Config:
    """Returns the configuration tree that every recipe starts from.

    Returns:
        An unlocked-type, locked-key `ConfigDict`; see the comments for units and ranges.
    """
    config = ml_collections.ConfigDict()
    config.name = "drl"
    config.seed = 0
    config.data = _data()
    config.encoders = _encoders()
    config.tokenizer = _tokenizer()
    config.backbone = _backbone()
    config.sampler = _sampler()
    config.pretrain = _pretrain()
    config.discriminator = _discriminator()
    config.preference = _preference()
    config.posttrain = _posttrain()
    config.evaluate = _evaluate()
    config.mesh = _mesh()
    # How a run is carried out, never what it computes: these may differ between two calls on one workdir.
    config.runtime = _runtime()
    return config.lock()


def _runtime() -> Config:
    return ml_collections.ConfigDict(
        {
            "tensorboard": False,
            "wandb": "",  # a project of Weights & Biases; empty: none
            "profile": {"stage": "", "first": 2, "count": 1},  # a trace of `count` steps of a stage, behind its step `first`
            "progress_seconds": 10.0,
            "checkpoint_seconds": 30.0,  # at least, between two checkpoints of a stage
            "compilation_cache": "",
            "checkpoints": {
                "directory": "",  # a folder or gs://BUCKET/NAME; empty: in the workdir
                "keep_last": 2,
                "keep_every_hours": 0.0,  # and one in so many hours, for good; 0: none
                "keep_best": "",  # and the best by a metric of the stage, for good: "held_out_coverage"; "-loss" is better where lower
            },
            "on_bad_step": "stop",  # stop | skip | rollback, where loss or gradient is not finite, or the gradient too large
            "spike_factor": 0.0,  # too large: more than so many times the median of the last 100 metric lines; 0: never
            "bad_steps_in_a_row": 5,  # that are skipped or rolled back; the next one stops the run
            "heartbeat_seconds": 300.0,  # without a sign of life, after which a process is named and the others end; 0: never
            "distributed": "off",  # off | auto (asks Cloud TPU, Slurm, Open MPI or Kubernetes) | HOST:PORT of process 0
            "num_processes": -1,  # with HOST:PORT
            "process_index": -1,  # with HOST:PORT, from 0; each process has its own
        }
    )


def _mesh() -> Config:
    return ml_collections.ConfigDict(
        {
            "data": -1,  # -1: what the others leave
            "fsdp": 1,  # weights, gradients, optimizer and batch are cut over it
            "tensor": 1,  # heads and hidden layers are cut over it
            "frozen": "like_trained",  # where the frozen networks lie: like_trained | fsdp | replicated
            "frozen_dtype": "float32",  # of the kernels of frozen networks that compute in bfloat16: float32 | bfloat16
        }
    )


def _data() -> Config:
    return ml_collections.ConfigDict(
        {
            "name": "digits",  # digits | patches | synthetic | any TFDS name (cifar10, imagenet2012 ...)
            "directory": "",  # where the ArrayRecord files live; empty: <workdir>/data
            "image_shape": (8, 8, 1),
            "num_classes": 10,
            # Names of classes, as the set has them (ImageNet's are synsets: "n01440764"): the others are left out, and labels are
            # numbered in this order. num_classes is how many there are. Empty: all.
            "classes": (),
            "split_seed": 0,  # which images are train, validation and test
            "validation_fraction": 0.2,  # of the train part
            "examples_per_class": 2000,  # patches and synthetic only: how many crops a class and split
            "in_memory": True,  # decode once and keep (small sets); otherwise decode on access
            "workers": 0,  # Grain worker processes that decode ahead; sets in memory need none
            "horizontal_flip": False,  # of what encoders, generator and discriminator train on
        }
    )


def _encoder(name: str, objective: str) -> Config:
    return ml_collections.ConfigDict(
        {
            # small-vit | small-convnet (trained here) | a published name such as dinov2-large | module:function of yours (docs/own_encoder.md)
            "name": name,
            "objective": objective,  # dino | simclr
            "width": 64,
            "depth": 3,
            "feature_dim": 64,
            "patch_size": 2,  # small-vit only
            # Published encoders: the folder that `jaxdrl convert` made; yours: a safetensors file, or empty: trained here; "random": drawn, for
            # tests.
            "weights": "",
            "dtype": "float32",  # published encoders: of the matmuls, float32 | bfloat16
            "fields": {},  # published encoders: resolution, kernel, antialias, pooling ... of `encoders.create`; yours: what it takes
            "augmentation": 1.0,  # strength of the views' zoom, shift, contrast, brightness and noise
            "steps": 3000,
            "batch_size": 128,
            "learning_rate": 1e-3,
        }
    )


def _encoders() -> Config:
    found = {"reward": _encoder("small-vit", "dino"), "judge": _encoder("small-convnet", "simclr")}
    # Of the reward bradley_terry, trained where that is used.
    return ml_collections.ConfigDict(found | {"preference": _encoder("small-convnet", "simclr")})


def _tokenizer() -> Config:
    return ml_collections.ConfigDict(
        {
            "name": "pixels",  # pixels | sd-vae | rae-dinov2-base
            "weights": "",  # the folder that `jaxdrl convert` made; "random": drawn, for tests
            "dtype": "float32",  # of convolutions and matmuls, float32 | bfloat16
            "posterior": "sample",  # what the generator trains on where the tokenizer has a law: sample | mean
            "batch_size": 32,  # images a device encodes or decodes at a time, outside the train step
            "fields": {},  # further fields of `tokenizers.create`
        }
    )


def _sampler() -> Config:
    return ml_collections.ConfigDict(
        {
            "method": "heun",  # heun | euler; the number of steps stands where samples are drawn
            "time_shift": 1.0,  # RAE's: sqrt(latent dimension / 4096); 1: a uniform grid
            "time_end": 1.0,  # last time before the shift; RAE's grid stops at 0.999
            "guidance_channels": 0,  # guide the first so many channels (SiT, DiT: 3 of 4); 0: all
        }
    )


def _backbone() -> Config:
    return ml_collections.ConfigDict(
        {
            # SiT, JiT ... with the sizes below; a published name such as SiT-XL/2, which has its own; module:function of a network of yours
            # (docs/own_backbone.md).
            "name": "SiT",
            # Start from these: the folder that `jaxdrl convert` made, or the workdir of a run, whose tuned model becomes the base (and the
            # KL reference); of a network of yours a safetensors file; "random": drawn, for tests; empty: pretrain.
            "weights": "",
            "fields": {},  # further fields of the network, such as {"qk_norm": True}; see `backbones.create`
            "patch_size": 2,
            "width": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 4.0,
            "frequency_dim": 64,  # of the time embedding
            "dtype": "float32",  # of the matmuls
            "remat": "none",  # what the backward pass computes again: none | full | dots | dots_no_batch | offload
            "scan_layers": False,  # one compiled block for all: large networks compile in seconds
            "attention": "auto",  # auto | einsum | xla | cudnn | splash
            "spectral": "none",  # SpectralDiT's gate: none | timestep | timestep+label | static
            "gate_scale": 1.0,
        }
    )


def _pretrain() -> Config:
    return ml_collections.ConfigDict(
        {
            "from_scratch": False,  # train base and encoders here, or start from those in the package
            "shipped": "",  # the recipe whose base and encoders these are; empty: this one's
            "steps": 20000,  # of the trunk, at a constant learning rate
            "decay_steps": 0,  # then of the branch in which it falls to 0; see stages/pretrain.py
            "batch_size": 128,
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            "adam_b2": 0.999,  # second decay of Adam
            "grad_clip": 1.0,
            "ema_decay": 0.999,
            "label_dropout": 0.1,
            "time_law": "uniform",  # uniform | logit_normal (JiT: mean -0.8, std 0.8; RAE: 0, 1 and a shift)
            "time_mean": 0.0,  # of the logit
            "time_std": 1.0,  # of the logit
            "time_shift": 1.0,  # RAE: sqrt(latent dimension / 4096)
            "target_eps": 0.0,  # JiT: 0.05, see algorithms/flow_matching.py
            "alignment": "",  # REPA: the published encoder whose patch tokens are the target, such as dinov2-base
            "alignment_weights": "",  # the folder that `jaxdrl convert` made; "random": drawn, for tests
            "alignment_fields": {},  # further fields of that encoder
            "alignment_weight": 0.5,
            "curve_every": 4000,  # steps between two points of the plateau curve
            "curve_samples": 2000,
        }
    )


def _discriminator() -> Config:
    return ml_collections.ConfigDict(
        {
            "head": "linear",  # linear | mlp2
            "width": 512,  # of the projection
            "r1": 0.0,  # gamma of the R1 penalty, on the image gradient of the logit
            "learning_rate": 1e-4,
            "batch_size": 512,
            "steps": 10000,  # at most
            "buffer_batches": 20,
            "buffer_epochs": 10,
            "validate_every": 50,  # steps
            "patience": 15,  # validations without improvement
            "cache_features": False,  # keep the features of all train images in files (without R1, which needs the images)
            "sampling_steps": 50,  # of the fake images
            "reconstruct_real": True,  # real images pass the tokenizer too, so that its artefacts give nobody away
        }
    )


def _preference() -> Config:
    """The reward bradley_terry: what its synthetic people like, and how it is learnt from their choices."""
    return ml_collections.ConfigDict(
        {
            "utility": {"symmetry": 1.0},  # image statistic -> weight, in standard deviations of the images that are compared
            "temperature": 0.5,  # of the choices; 0.5 utilities apart, the better one is chosen in 73 % of the cases
            "images": 4000,  # samples of the base that are compared
            "pairs": 20000,  # of images of one class
            "held_out": 0.2,  # share of the images whose pairs are kept for testing
            "steps": 1000,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "weight_decay": 1e-3,
            "sampling_steps": 25,
        }
    )


def _posttrain() -> Config:
    return ml_collections.ConfigDict(
        {
            "algorithm": "adjoint_matching",  # adjoint_matching | nft | flow_grpo
            "reward_scale": 10.0,  # lambda; policy gradients normalise their rewards and have kl_weight instead
            "num_timesteps": 100,  # K
            "integrator": "local_linear",  # local_linear | euler_maruyama
            "time_offset": -1.0,  # delta of the memoryless SDE; negative: the paper's, 1/K
            "noise_offset": -1.0,  # its epsilon; negative: the paper's, 1/K
            "gain_eps": -1.0,  # epsilon in the gain of the target; negative: as noise_offset
            "timestep_fraction": 0.4,
            "timestep_split": 0.6,
            "subset_reduction": "sum",  # sum | mean
            "outlier_mask": True,
            "outlier_quantile": 0.9,
            "outlier_decay": 0.9,
            "outlier_cap": 5.0,
            "buffer_size": 2304,  # trajectories a refresh
            "rollout_batch": 0,  # trajectories rolled out at a time; 0: all of the buffer
            "reward_batch": 0,  # of these, samples decoded and rewarded at a time; 0: all
            # Of adjoint_matching, see training/methods/buffers.py and docs/memory.md.
            "buffer_dtype": "float32",  # of the states that are kept, never of the targets: float32 | bfloat16
            "buffer_memory": "device",  # device | pinned_host
            "shuffle_block": 1,  # trajectories that stay together in all minibatches of a refresh
            "refreshes": 100,
            "epochs": 5,  # over the buffer
            "batch_size": 576,  # trajectories a gradient step
            "learning_rate": 1e-5,
            "warmup_steps": 200,
            "decay": "constant",  # constant | linear | cosine, over all gradient steps
            "grad_clip": 0.0,  # global norm; 0: none
            "ema_decay": 0.0,  # of the tuned weights, a gradient step; 0: none
            "rewards": {
                "discriminator": {}
            },  # label -> fields of `rewards.create`: name (default: the label), scale, classes ...
            "balance": _balance(),
            "micro_batches": 1,  # parts in which a minibatch's gradient is summed up
            "lora": {"rank": 0, "alpha": 64.0, "targets": ("attn/qkv$", "attn/proj$")},  # rank 0: all weights are trained
            # What follows is for the policy gradients, nft and flow_grpo; of the guard, spread and reward_spread are.
            "group_size": 24,  # samples of one condition, whose rewards are compared
            "advantages": {"spread": "global", "epsilon": 1e-4},  # global | group, see algorithms/advantages.py
            "nft": _nft(),
            "flow_grpo": _flow_grpo(),
            "host": _host(),
            "guard": _guard(),
        }
    )


def _balance() -> Config:
    return ml_collections.ConfigDict(
        {
            # sum of rewards | gdpo: of advantages, not for adjoint_matching | uniform: mean of losses | marble: arXiv 2605.06507
            "rule": "sum",
            "weights": (),  # of the rewards, for sum, gdpo and marble; empty: ones
            "gram": "amortised",  # marble: exact | amortised | sketch, see balancing/gradients.py
            "solve_every": 10,  # N of amortised
            "decay": 0.7,  # rho of the amortised weights
            "average": 0.3,  # rho of the sketched Gram matrix
            "layers": ("^final_.*linear",),  # regular expressions: the parameters that a sketch looks at; the last layer
        }
    )


def _nft() -> Config:
    return ml_collections.ConfigDict(
        {
            "mixing": 1.0,  # beta
            "kl_weight": 1e-4,
            "advantage_limit": 5.0,
            "loss_scale": "code",  # code | paper
            "weighting": "adaptive",  # adaptive | uniform
            "num_steps": 10,  # of the sampler
            "method": "heun",
            "times": "sampler",  # sampler: its own times | uniform: fresh ones
            "times_per_sample": 0,  # 0: int(0.99 num_steps) of the sampler's, 1 of fresh ones
            "old_policy": "default",  # on_policy | default | slow | marble: schedules of algorithms/nft.py
        }
    )


def _flow_grpo() -> Config:
    return ml_collections.ConfigDict(
        {
            "sde": "flow",  # flow: the paper's, of noise_level | memoryless: Adjoint Matching's, with integrator
            "noise_level": 0.7,
            "integrator": "local_linear",  # of the memoryless SDE: local_linear | euler_maruyama
            "num_steps": 10,
            "window": 0,  # noisy and trained steps of a rollout; 0: all
            "clip_range": 1e-4,
            "advantage_limit": 5.0,
            "kl_weight": 0.004,
            "kl_form": "paper",  # paper | code
            "reduction": "mean",  # of log-probabilities over dimensions: mean | sum
            "drop_zero": True,
        }
    )


def _host() -> Config:
    """Of rewards on the host; like `runtime`, all but `overlap` may differ between two calls on one workdir."""
    return ml_collections.ConfigDict(
        {
            "timeout_seconds": 60.0,  # of one attempt for all images of a refresh
            "retries": 2,  # further attempts; then the reward is masked in this refresh
            "backoff_seconds": 1.0,  # before the second attempt; twice as long before each further one
            "patience": 3,  # the run stops, to be resumed, before it learns from so many refreshes in a row with a masked reward
            # The next rollout while rewards are computed; policy gradients only. False, since samples are then one update older, and
            # a tree of parameters and a buffer more are held: see training/methods/overlap.py.
            "overlap": False,
            "isolate": False,  # a process of its own for each reward, killed when it hangs and started anew when it dies
        }
    )


def _guard() -> Config:
    return ml_collections.ConfigDict(
        {
            "spread": 0.25,  # bad where samples of a condition differ by less than this share of what the base's do; 0: never
            "reward_spread": 0.1,  # ... where a reward's spread within conditions is below this share of the first refresh's; 0: never
            "energy": 0.0,  # ... where the tuned model is more than so many nats from the base; 0: never
            "coverage": 0.2,  # ... where coverage of held-out images is more than this below the base's, in judge space; 0: never
            "drift": 0.0,  # ... where light or colour moved by more of the base's standard deviations over images; 0: never
            "every": 10,  # refreshes between two looks at held-out images, for coverage and drift; 0: never
            "samples": 512,  # images drawn for a look, with evaluate.sampling_steps
            "real": 2000,  # validation images they are compared with, at most; 0: all
            "patience": 3,  # bad refreshes in a row that stop the run; the last good weights are kept
        }
    )


def _evaluate() -> Config:
    return ml_collections.ConfigDict(
        {
            "split": "test",  # against which real images: test | validation
            "rewards": {},  # that are measured besides posttrain.rewards and not trained on; written as those are
            "num_samples": 4000,
            "sampling_steps": 50,
            "max_real": 50000,  # real images of a split that are read, at most
            "to_uint8": "round",  # how samples become bytes: round (JiT) | truncate (ADM, SiT, REPA, RAE)
            "batch_size": 1000,  # images a device and compiled call
            "tilt_pool": 4,  # base samples drawn for the ideal tilt, as a multiple of num_samples
            "guidance_scales": (1.25, 1.5, 2.0),
            "guidance_intervals": ((0.0, 1.0), (0.1, 1.0), (0.3, 1.0)),
            "guidance_samples": 2000,  # for choosing the scale, on the validation split
            "kernel_subsets": 100,
            "kernel_subset_size": 500,
            "bootstrap": 50,
            "controls": True,  # continued pretraining at equal compute
            "best_guidance": True,  # base and tuned model with their best guidance
        }
    )
