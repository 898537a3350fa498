"""The chaos campaign: a real cluster, mixed work from several processes, random faults, and then the verdict.

``journal`` is the history and its file, ``work`` what the processes do, ``nemesis`` what is done to the cluster,
``verdict`` the judge, ``campaign`` the run. The format of the history stands in docs/testing.md.
"""

import os

# Before Ray is imported: a campaign kills many processes, and need not be told of each.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^(A worker died or was killed|Raylet is terminated|The node with)")
