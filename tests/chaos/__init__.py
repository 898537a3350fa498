"""The chaos campaign: a real cluster, mixed work from several processes, random faults, and then the verdict.

``journal`` is the history and its file, ``work`` what the processes do, ``nemesis`` what is done to the cluster,
``verdict`` the judge, ``campaign`` the run. The format of the history stands in docs/testing.md.
"""
