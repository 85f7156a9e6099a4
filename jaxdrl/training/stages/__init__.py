"""The stages of a run, in order; each is a module with a `name` and `run(run) -> result`."""

ORDER = ("data", "encoders", "pretrain", "discriminator", "posttrain", "longer", "evaluate", "report")
