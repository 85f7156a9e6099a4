"""One of two processes for `test_distributed.py`: a run that does nothing but take steps together, in the command line's own frame.

Arguments: folder, number of this process and port.
"""

import sys
import time
from pathlib import Path

import jax
import ml_collections

from jaxdrl import cli
from jaxdrl.errors import Stopped
from jaxdrl.training import distributed
from jaxdrl.training.heartbeat import Heartbeat
from jaxdrl.training.stopping import Stopping


def steps(argv):
    folder, index = Path(argv[0]), int(argv[1])
    runtime = {"distributed": f"localhost:{argv[2]}", "num_processes": 2, "process_index": index, "heartbeat_seconds": 4.0}
    distributed.initialise(ml_collections.ConfigDict(runtime))
    beat, stopping = Heartbeat(), Stopping()
    with stopping.listening(), beat.beating(folder, 4.0, index, jax.process_count()), distributed.lost_contact():
        for step in range(10**6):
            beat.at("steps", step)
            if stopping.requested():
                raise Stopped(f"step {step}")
            time.sleep(0.05)
    return 0


if __name__ == "__main__":
    cli._dispatch = steps
    sys.exit(cli.main())
