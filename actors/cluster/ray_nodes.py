"""Ray's nodes as places for members: which nodes there are, how a member is pinned to one, and running functions there.

A member is pinned by a resource that its node offers, not by node affinity. Ray's node ids change with every start of
Ray, and an actor with hard affinity to a node that is gone is dead for good. One that waits for a resource is started
again as soon as the resource is back.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...errors import KeeperError, SpecError, Unavailable
from ..deadline import at_most
from ..ray_calls import in_time
from ..ray_view import RayNode


class PackageMissing(Unavailable):
    """A Ray node on which RayKeeper cannot be loaded."""


def choose_nodes(members: int, placement: str | Sequence[str], nodes: Sequence[RayNode]) -> list[tuple[RayNode, str]]:
    """A node and a pin for each member of a new cluster: each gets a node of its own if there are enough.

    Args:
        placement: "spread", or names of resources that are used in turn, one for each node that may hold members.

    Raises:
        SpecError: no node that is alive offers one of the resources.
        Unavailable: there is no node.
    """
    if not nodes:
        raise Unavailable("there is no Ray node that is alive and could hold a member")
    if isinstance(placement, str):
        # Nodes of one address are one machine: a machine gets a second member only when all have one.
        seen: Counter[str] = Counter()
        ranked = []
        for node in nodes:
            ranked.append((seen[node.address], node))
            seen[node.address] += 1
        ranked.sort(key=lambda pair: pair[0])
        return [(node, node.own_pin) for _, node in (ranked[i % len(ranked)] for i in range(members))]
    used: Counter[str] = Counter()
    chosen = []
    for i in range(members):
        pin = placement[i % len(placement)]
        offering = [node for node in nodes if pin in node.resources]
        if not offering:
            raise SpecError("spec", "placement", f"resources that a Ray node offers; none that is alive offers {pin!r}")
        node = min(offering, key=lambda node: used[node.id])
        used[node.id] += 1
        chosen.append((node, pin))
    return chosen


def run_on(
    nodes: Mapping[Any, RayNode], function: Callable[..., Any], arguments: Mapping[Any, tuple[Any, ...]], timeout: float
) -> dict[Any, Any]:
    """Run a function once for each key, on the key's node and with the key's arguments, all at the same time.

    Raises:
        PackageMissing: a node cannot load RayKeeper.
        Unavailable: a node did not answer in time or died meanwhile, or the function raised some other error there.
        KeeperError: what the function raised.
    """
    results = run_where_possible(nodes, function, arguments, timeout)
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return results


def run_where_possible(
    nodes: Mapping[Any, RayNode], function: Callable[..., Any], arguments: Mapping[Any, tuple[Any, ...]], timeout: float
) -> dict[Any, Any]:
    """As ``run_on``, but an error is the result of its key, and does not affect the others."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    deadline = time.monotonic() + timeout
    references = {
        key: in_time(
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote,
            *arguments[key],
        )
        for key, node in nodes.items()
    }
    results: dict[Any, Any] = {}
    for key, reference in references.items():
        where = f"Ray node {nodes[key].address} ({nodes[key].id[:8]})"
        try:
            results[key] = ray.get(reference, timeout=at_most(max(0.0, deadline - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            results[key] = Unavailable(f"{where} did not answer within {timeout:g} s")
        except ray.exceptions.RayTaskError as error:
            results[key] = in_one_line(where, error.cause)
        except ray.exceptions.RayError as error:
            results[key] = Unavailable(f"{where} failed: {type(error).__name__}{_why_no_environment(error)}")
    return results


def _why_no_environment(error: BaseException) -> str:
    """Why Ray could not make the job's environment (``runtime_env``) on a node: the last line of what it says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f": {said[-1]}" if said and isinstance(error, ray.exceptions.RuntimeEnvSetupError) else ""


def in_one_line(where: str, error: BaseException) -> KeeperError:
    """What a function raised on a node, as an error that names the node; Ray's own errors are a whole traceback.

    ``PackageMissing`` must be recognized: on such a node no member can live, so nothing waits for it.
    """
    if isinstance(error, KeeperError):
        return error
    if isinstance(error, OSError):
        return Unavailable(f"{where}: {error.filename or 'its disk'}: {error.strerror or error}")
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A worker that cannot import what it is to run raises RuntimeError, with the cause somewhere in its text.
    loading = bool(said) and said[0].startswith(_RAYS_WORDS)
    cause = next((line for line in reversed(said) if (_ANY_ERROR if loading else _NOT_THERE).match(line)), "")
    if isinstance(error, (ImportError, AttributeError)) and not cause:
        cause = f"{type(error).__name__}: {error}"
    if cause:
        return PackageMissing(
            f"{where} cannot load RayKeeper ({cause}): install the package there, in the version that is installed "
            "here, for the Python that Ray runs with; or have placement name only nodes that have it"
        )
    return Unavailable(f"{where}: {type(error).__name__}: {said[0] if said else 'it failed'}")


_NOT_THERE = re.compile(r"(ModuleNotFoundError|ImportError|AttributeError): ")
_ANY_ERROR = re.compile(r"[\w.]+(Error|Exception|Warning|Interrupt|Exit)(: |$)")
_RAYS_WORDS = "The remote function failed to import on the worker"
"""How Ray's message starts if a worker could not load what it is to run: whatever the error, the package caused it."""
