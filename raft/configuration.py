"""Configuration changes: which are valid, and which configuration follows.

A change that alters at most one voter is applied in one step: the old and the new majorities overlap (thesis, section
4.1). One that alters more goes through a joint configuration (section 4.3), which the leader leaves on its own. Every
change names the configuration that it is based on and is void on any other, so only one of two changes made from the
same configuration can take effect. All members decide this alike, from the configuration and the entry alone.
"""

from __future__ import annotations

import msgspec

from .messages import ChangeKind, Configuration, ConfigurationChange, MemberChange

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ConfigurationChange)


class InvalidChange(ValueError):
    """The configuration change is not valid on the given configuration."""


def encode_change(change: ConfigurationChange) -> bytes:
    """The data of a CONFIGURATION entry."""
    return _encoder.encode(change)


def decode_change(data: bytes) -> ConfigurationChange:
    """Reverse of :func:`encode_change`.

    Raises:
        InvalidChange: the data does not encode a change.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidChange(str(error)) from error


def apply_change(configuration: Configuration, change: ConfigurationChange, index: int) -> Configuration:
    """The configuration that results from a change whose log entry has this index.

    Raises:
        InvalidChange: it is based on another configuration, changes nothing, names a member twice, leaves no voter,
            or would alter a joint configuration in any way but leaving it.
    """
    if change.base != configuration.index:
        raise InvalidChange(f"based on configuration {change.base}, not on {configuration.index}")
    if not change.changes:
        return _leave_joint(configuration, index)
    if configuration.joint:
        raise InvalidChange("a joint configuration must be left first")
    old = frozenset(configuration.voters)
    voters, learners = set(old), set(configuration.learners)
    named: set[int] = set()
    for step in change.changes:
        if step.member < 1:
            raise InvalidChange(f"{step.member} is not a member id")
        if step.member in named:
            raise InvalidChange(f"member {step.member} is named twice")
        named.add(step.member)
        _apply_step(step, voters, learners)
    if not voters:
        raise InvalidChange("no voter would be left")
    if len(old ^ voters) <= 1:
        return Configuration(voters=_ids(voters), learners=_ids(learners), index=index)
    # An outgoing voter still votes for the old half, so it becomes a learner only when the joint configuration is left.
    return Configuration(
        voters=_ids(voters),
        outgoing=_ids(old),
        learners=_ids(learners - old),
        learners_next=_ids(learners & old),
        auto_leave=True,
        index=index,
    )


def _apply_step(step: MemberChange, voters: set[int], learners: set[int]) -> None:
    """Apply one step in place. A step without effect is refused: it would hide a mistake of its proposer."""
    member = step.member
    if step.kind is ChangeKind.ADD_VOTER:
        if member in voters:
            raise InvalidChange(f"member {member} is already a voter")
        learners.discard(member)
        voters.add(member)
    elif step.kind is ChangeKind.ADD_LEARNER:
        if member in learners:
            raise InvalidChange(f"member {member} is already a learner")
        voters.discard(member)
        learners.add(member)
    else:
        if member not in voters and member not in learners:
            raise InvalidChange(f"there is no member {member}")
        voters.discard(member)
        learners.discard(member)


def _leave_joint(configuration: Configuration, index: int) -> Configuration:
    if not configuration.joint:
        raise InvalidChange("the configuration is not joint")
    learners = frozenset(configuration.learners) | frozenset(configuration.learners_next)
    return Configuration(voters=configuration.voters, learners=_ids(learners), index=index)


def _ids(members: frozenset[int] | set[int]) -> tuple[int, ...]:
    return tuple(sorted(members))
