"""Wrong versions of the real code, one rule broken in each: the simulator must be able to fail.

Each mutant names the profile that sets the stage for it. The same profile without the mutant is part of the ordinary
seeds, and passes. The modules are divided by what is broken.
"""

from simulation.mutants import clients, deaths, disks, elections_and_reads, lone_reads, proxies, sharing, state, time
from simulation.mutants.registry import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "clients",
    "deaths",
    "disks",
    "elections_and_reads",
    "lone_reads",
    "proxies",
    "sharing",
    "state",
    "time",
]
