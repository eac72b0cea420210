"""Devices, processes and the placing of arrays: a ("data", "fsdp") mesh over everything there is."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slimvit_jax.errors import SlimError, first_line

#: Variables in which a launcher that jax.distributed can read says how many processes it started.
_LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def start_processes(dist: Any) -> None:
    """Joins the processes of a distributed run; does nothing where there is only one.

    With dist.mode "auto" that is when dist.coordinator is given, or SLURM, Open MPI, a TPU pod or
    JAX_COORDINATOR_ADDRESS show more than one process; "on" leaves the finding to JAX alone; "off" never joins. Call it
    before any array is made.

    Raises:
      SlimError: half-given addresses, or processes that do not come together.
    """
    if dist.mode == "off":
        return
    options: dict[str, Any] = {}
    if dist.coordinator or dist.num_processes or dist.process_id >= 0:
        if not (dist.coordinator and dist.num_processes > 0 and 0 <= dist.process_id < dist.num_processes):
            raise SlimError(
                f"config.dist needs coordinator ('HOST:PORT'), num_processes and process_id (from 0) together;"
                f" got {dist.coordinator!r}, {dist.num_processes}, {dist.process_id}"
            )
        options = {
            "coordinator_address": dist.coordinator,
            "num_processes": dist.num_processes,
            "process_id": dist.process_id,
        }
    elif dist.mode == "auto" and not _several_processes():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # many kinds, by launcher
        where = dist.coordinator or "the address found in the environment"
        raise SlimError(f"cannot join the other processes at {where}: {first_line(error)}") from error


def _several_processes() -> bool:
    counts = [os.environ.get(name, "1") for name in _LAUNCHERS]
    several = any(count.isdigit() and int(count) > 1 for count in counts)
    pod = any("," in os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return several or pod or "JAX_COORDINATOR_ADDRESS" in os.environ


def start_devices(mesh: Any, cache_dir: str) -> None:
    """Sets what must be set before the first array: virtual CPU devices and the cache of compiled programs."""
    if mesh.cpu_devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", mesh.cpu_devices)
        except RuntimeError:  # devices are in use already, as in a notebook
            if jax.default_backend() == "cpu" and len(jax.local_devices()) != mesh.cpu_devices:
                raise SlimError(
                    f"config.mesh.cpu_devices is {mesh.cpu_devices}, but JAX already runs with"
                    f" {len(jax.local_devices())}; set it in a fresh process"
                ) from None
    if cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache_dir))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def make_mesh(fsdp: int = 1) -> Mesh:
    """The mesh ("data", "fsdp") over all devices of all processes; `fsdp` of them share one copy of the parameters."""
    devices = jax.devices()
    if len(devices) % fsdp:
        raise SlimError(f"config.mesh.fsdp={fsdp} does not divide the {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(mesh: Mesh, abstract: Any, smallest: int = 16384) -> Any:
    """For every array of a state, how it lies on the mesh: whole on each device, or its widest axis split over "fsdp".

    Only arrays of at least `smallest` elements with an axis that "fsdp" divides are split: small ones cost more to
    gather than to hold.
    """
    fsdp = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes: list[str | None] = [None] * len(leaf.shape)
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp > 1 and fitting and leaf.size >= smallest:
            axes[max(fitting, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, abstract)


def to_host(tree: Any) -> Any:
    """The whole of every array as NumPy, on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, jax.device_get(tree))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises SlimError where a batch does not divide over the devices and micro-batches."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        near = max(1, round(batch_size / parts)) * parts
        raise SlimError(
            f"config.data.batch_size={batch_size} does not divide over {mesh.size} devices x {accumulate} micro-batches"
            f"; the nearest that does: {near}"
        )
