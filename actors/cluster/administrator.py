"""The user for whom this process administers a cluster that needs one: as given to ``attach``, or as named by a spec.

A spec names where the password lies, a file or an environment variable of the process that launches, and never the
password: specs are committed, copied and shown.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...errors import SpecError
from ..client.hub_pool import HubShare, open_hub
from ..client.login import Credentials
from ..leader_call import administer_as

if TYPE_CHECKING:
    from ...spec import ClusterSpec


def credentials_of_spec(spec: ClusterSpec) -> Credentials | None:
    """The user that a spec names; ``None`` if it names none.

    Raises:
        SpecError: the environment variable is not set, or the file cannot be read.
    """
    if not spec.user:
        return None
    if spec.password_env:
        password = os.environ.get(spec.password_env)
        if password is None:
            raise SpecError(
                "spec", "password_env", f"an environment variable that is set; there is no {spec.password_env}"
            )
        return Credentials(spec.user, password)
    path = os.path.expanduser(spec.password_file)
    if not os.access(path, os.R_OK) or os.path.isdir(path):
        raise SpecError("spec", "password_file", f"a file that can be read; {path} is not one")
    return Credentials(spec.user, password_file=path)


def administer_by(name: str, cluster: int, credentials: Credentials | None, timeout: float) -> HubShare | None:
    """From now on this process administers a cluster as that user; as nobody, for ``None``.

    Returns:
        what keeps the user's connection open.

    Raises:
        AuthFailed: there is no such user, or this is not its password.
        Unavailable: no member answers in time.
    """
    if credentials is None:
        administer_as(name, None)
        return None
    share = open_hub(name, timeout, cluster, credentials)

    def token(member: object) -> bytes:
        login = share.hub.login
        return b"" if login is None else login.current_token()

    administer_as(name, token)
    return share
