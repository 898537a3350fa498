"""`raykeeper txn`: a transaction, read as etcdctl reads it, or given as options."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from ..actors.arguments import shown
from ..actors.client.txn_parts import Comparand, Compare, Condition, Op
from .keys import (
    consistency_options,
    delete_options,
    get_arguments,
    get_options,
    is_serializable,
    only_by_ray,
    put_arguments,
    put_options,
    write_options,
)
from .options import common, endpoint_option, fenced, open_keys, options, selected, timeout_option, whole_number
from .render import show
from .stdio import read_stdin, read_stdin_lines


@click.command()
@options(common, endpoint_option, timeout_option)
@click.option("-i", "--interactive", is_flag=True, help="Ask for each block, on stderr.")
@click.option("--compare", multiple=True, metavar="COMPARISON", help='For example: version("k") = 0')
@click.option("--success", multiple=True, metavar="OPERATION", help="For example: put k v")
@click.option("--failure", multiple=True, metavar="OPERATION", help="For example: get k")
@write_options
def txn(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    interactive: bool,
    compare: tuple[str, ...],
    success: tuple[str, ...],
    failure: tuple[str, ...],
    request_id: bytes | None,
    guard: bool,
) -> None:
    """Run a transaction: if all comparisons hold, the success operations, else the failure operations.

    Without options it is read from stdin, as for etcdctl: comparisons, an empty line, success operations, an empty
    line, failure operations, one per line. Words are quoted as in a shell; lines that start with # are skipped. With
    --interactive it ends at the third empty line.

    \b
    COMPARISON   version|create|mod|value|lease("KEY") =|!=|<|> OPERAND
    OPERATION    put KEY VALUE | get KEY [END] | del KEY [END], with the options of these commands that say
                 what to put or delete, or what to print and in which order
    """
    blocks: Sequence[Sequence[str]] = (compare, success, failure)
    if interactive and any(blocks):
        raise click.UsageError(
            "--interactive reads the transaction from stdin: give no --compare, --success, --failure"
        )
    by_ray = only_by_ray(request_id, guard)
    if not any(blocks):
        blocks = _blocks(_asked() if interactive else _given())
    conditions = [_comparison(line) for line in blocks[0]]
    branches = [[_operation(line) for line in block] for block in blocks[1:]]
    with open_keys(cluster, address, timeout, by_ray) as kv:
        show(fenced(kv, guard).txn(conditions, branches[0], branches[1], request_id=request_id), output)


_QUESTIONS = ("compares:", "success requests (get, put, del):", "failure requests (get, put, del):")


def _given() -> list[str]:
    """The lines of a transaction: all of stdin."""
    return [line for line, _ in _lines(map(os.fsdecode, io.BytesIO(read_stdin("the transaction"))))]


def _asked() -> list[str]:
    """The lines of a transaction, from stdin up to its third empty line, with etcdctl's question before each block.

    Raises:
        UsageError: stdin ends before that. What was read may lack anything, so nothing of it may be done.
    """
    said: list[str] = []
    lines = _lines(map(os.fsdecode, read_stdin_lines()))
    for question in _QUESTIONS:
        click.echo(question, err=True)
        for line, whole in lines:
            said.append(line)
            if whole and not line.strip(_BLANKS):
                break
        else:
            raise click.UsageError("stdin has ended before the third empty line: nothing is sent")
    return said


def _blocks(lines: Iterable[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if not line.strip(_BLANKS):
            blocks.append([])
        elif not line.startswith("#"):
            blocks[-1].append(line)
    if any(blocks[3:]):
        raise click.UsageError("more than three blocks: comparisons, success and failure operations")
    return [*blocks, [], []][:3]


def _lines(read: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The lines of a transaction, without their newlines, and whether there was one; only the last may lack it. As in a
    shell, a line ends at each newline that is not quoted, and nowhere else.

    Args:
        read: the lines that were read, which end at every newline. Of these no more are taken than are needed.
    """
    parts: list[str] = []
    quote, skip = "", False
    for part in read:
        parts.append(part)
        ends = False
        comment = parts[0].startswith("#")
        for letter in part:
            if skip:
                skip = False
            elif letter == "\\" and quote != "'" and not comment:
                skip = True
            elif quote:
                quote = "" if letter == quote else quote
            elif letter in "'\"" and not comment:
                quote = letter
            elif letter == "\n":
                ends = True
        if ends:
            yield "".join(parts)[:-1], True
            parts = []
    if parts:
        yield "".join(parts), False


_BLANKS = " \t\r\n"
_WORD = r"""(?:[^"'\\)]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')*"""
"""Up to the next closing parenthesis that is not quoted."""
_COMPARISON = re.compile(
    rf"[ \t\r\n]*(version|create|mod|value|lease)\(({_WORD})\)[ \t\r\n]*(==?|!=|<|>)(.*)", re.DOTALL
)
_TARGETS = {
    "version": Compare.version,
    "create": Compare.create_revision,
    "mod": Compare.mod_revision,
    "value": Compare.value,
    "lease": Compare.lease,
}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"{shown(text)}: {str(error).lower()}") from None


def _comparison(line: str) -> Condition:
    match = _COMPARISON.fullmatch(line)
    keys, operands = (_words(match[2]), _words(match[4])) if match else ([], [])
    if match is None or len(keys) != 1 or len(operands) != 1:
        raise click.UsageError(f'{shown(line)} is not a comparison such as: mod("key") > 5')
    kind, relation = match[1], match[3]
    operand: Any = os.fsencode(operands[0])
    if kind != "value":
        operand = whole_number(operands[0], 16 if kind == "lease" else 10)
        if operand is None:
            raise click.UsageError(f"{shown(line)}: {kind} is compared with a whole number of up to 63 bits")
    left = _TARGETS[kind](os.fsencode(keys[0]))
    return _RELATIONS[relation](left, operand)


_RELATIONS: dict[str, Callable[[Comparand, Any], Condition]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
}


def _operation(line: str) -> Op:
    words = _words(line)
    if not words or words[0] not in _OPERATIONS:
        raise click.UsageError(f"{shown(line)} is not an operation: put, get or del")
    command = _OPERATIONS[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        operation: Op = command.invoke(context)
        return operation


@click.command("put", add_help_option=False)
@put_options
def _put_operation(**arguments: Any) -> Op:
    return Op.put(**put_arguments(**arguments))


@click.command("get", add_help_option=False)
@get_options
@consistency_options
def _get_operation(consistency: str | None, serializable: bool, **arguments: Any) -> Op:
    is_serializable(consistency, serializable)  # of no effect: a transaction is linearizable
    return Op.range(**get_arguments(**arguments))


@click.command("del", add_help_option=False)
@delete_options
def _delete_operation(key: bytes, end: bytes | None, prefix: bool, from_key: bool, prev: bool) -> Op:
    return Op.delete(**selected(key, end, prefix, from_key), prev=prev)


_OPERATIONS = {"put": _put_operation, "get": _get_operation, "del": _delete_operation}
