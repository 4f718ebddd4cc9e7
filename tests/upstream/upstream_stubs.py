# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
"""Stand-ins for the modules which transformers' test files import but its sdist does not hold.

- The generation and export mixins are bases only; what they would check is covered by our own tests
  (`tests/modeling/test_generation.py`, and the export test in `test_model_common.py`).
- `distributed_testing_utils` starts ranks; ours starts gloo processes on the CPU.
"""

import os
import pickle
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class ExportTesterMixin:
    pass


class GenerationTesterMixin:
    pass


# Other than the defaults of PreTrainedConfig; the config tester checks that a subclass keeps them.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeArchitecture"],
    "id2label": {0: "no", 1: "yes"},
    "label2id": {"no": 0, "yes": 1},
    "problem_type": "regression",
}


def _rank_main(rank: int, tests: str, payload: bytes, errors: str) -> None:
    try:
        # The payload refers to functions of the upstream package, which is new to this interpreter
        import upstream_sdist

        upstream_sdist.install(Path(tests))
        torch.set_num_threads(1)
        function, args = pickle.loads(payload)
        function(rank, *args)
    except BaseException:
        Path(errors, f"rank{rank}").write_text(traceback.format_exc())
        raise


def _join(processes: list, timeout: float) -> bool:
    """Wait for all; once one has failed, or time is up, end the others, which may wait on it forever.

    Returns whether all ended in time.
    """
    deadline = time.monotonic() + timeout
    in_time = True
    while any(process.is_alive() for process in processes):
        failed = any(process.exitcode not in (None, 0) for process in processes)
        in_time = time.monotonic() < deadline
        if failed or not in_time:
            time.sleep(1.0)  # let the other ranks write down their own errors
            for process in processes:
                process.kill()
        time.sleep(0.05)
    for process in processes:
        process.join()
    return in_time


def _start_rank_processes(function, args: tuple, nprocs: int, timeout: float = 300.0) -> None:
    """Run `function(rank, *args)` in `nprocs` fresh processes; raise if one of them fails or hangs."""
    import upstream_sdist

    context = mp.get_context("spawn")
    payload = pickle.dumps((function, args))
    with tempfile.TemporaryDirectory() as errors:
        processes = [
            context.Process(
                target=_rank_main, args=(rank, str(upstream_sdist.fetch()), payload, errors), daemon=True
            )
            for rank in range(nprocs)
        ]
        for process in processes:
            process.start()
        in_time = _join(processes, timeout)
        reports = [f"{path.name}:\n{path.read_text()}" for path in sorted(Path(errors).iterdir())]
        codes = [process.exitcode for process in processes]
    if reports or any(codes):
        # Ranks mostly hang because one of them failed between two collectives
        what = "failed" if in_time else f"took more than {timeout:.0f} s"
        raise RuntimeError(f"distributed test {what}, exit codes {codes}\n" + "\n".join(reports))


def _group_main(rank: int, function, args: tuple, world_size: int, rendezvous: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int):
    """`run_distributed(world_size=n)(f)(*args)` runs `f(rank, *args)` on n ranks of one gloo group."""

    def decorate(function):
        def start(*args):
            with tempfile.TemporaryDirectory() as folder:
                rendezvous = os.path.join(folder, "rendezvous")
                _start_rank_processes(_group_main, (function, args, world_size, rendezvous), world_size)

        return start

    return decorate


MODULES = {
    "exporters.test_export": {"ExportTesterMixin": ExportTesterMixin},
    "generation.test_utils": {"GenerationTesterMixin": GenerationTesterMixin},
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_COMMON_KWARGS},
    "distributed_testing_utils": {
        "run_distributed": run_distributed,
        "_start_rank_processes": _start_rank_processes,
        "_get_distributed_backend": lambda: "gloo",
        "_get_distributed_device_type": lambda: "cpu",
        "_get_rank_device": lambda rank: torch.device("cpu"),
        "_set_rank_device": lambda rank: None,
    },
}
