"""`raykeeper txn`: a transaction, read as etcdctl reads it, or given as options."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from ..actors.arguments import shown
from ..actors.client.txn_parts import Comparand, Compare, Condition, Op
from ..limits import MAX_STDIN_BYTES
from .keys import delete_options, get_arguments, get_options, only_by_ray, put_arguments, put_options, write_options
from .options import common, endpoint_option, fenced, open_keys, options, selected, timeout_option, whole_number
from .render import show
from .stdio import read_stdin


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
    OPERATION    put KEY VALUE | get KEY [END] | del KEY [END], with the options of these commands
    """
    blocks: Sequence[Sequence[str]] = (compare, success, failure)
    if interactive and any(blocks):
        raise click.UsageError(
            "--interactive reads the transaction from stdin: give no --compare, --success, --failure"
        )
    if not any(blocks):
        blocks = _blocks(_asked() if interactive else os.fsdecode(read_stdin()))
    conditions = [_comparison(line) for line in blocks[0]]
    branches = [[_operation(line) for line in block] for block in blocks[1:]]
    with open_keys(cluster, address, timeout, only_by_ray(request_id, guard)) as kv:
        show(fenced(kv, guard).txn(conditions, branches[0], branches[1], request_id=request_id), output)


_QUESTIONS = ("compares:", "success requests (get, put, del):", "failure requests (get, put, del):")


def _asked() -> str:
    """The text of a transaction, from stdin up to its third empty line, with etcdctl's question before each block."""
    said: list[str] = []
    for question in _QUESTIONS:
        click.echo(question, err=True)
        while line := os.fsdecode(sys.stdin.buffer.readline(MAX_STDIN_BYTES)):
            said.append(line)
            if not line.strip(_BLANKS):
                break
    return "".join(said)


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in _lines(text):
        if not line.strip(_BLANKS):
            blocks.append([])
        elif not line.startswith("#"):
            blocks[-1].append(line)
    if any(blocks[3:]):
        raise click.UsageError("more than three blocks: comparisons, success and failure operations")
    return [*blocks, [], []][:3]


def _lines(text: str) -> Iterator[str]:
    """The lines of a transaction. As in a shell, a line ends at each newline that is not quoted, and nowhere else."""
    begin, quote, skip = 0, "", False
    for place, letter in enumerate(text):
        if skip:
            skip = False
        elif letter == "\\" and quote != "'" and text[begin] != "#":
            skip = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and text[begin] != "#":
            quote = letter
        elif letter == "\n":
            yield text[begin:place]
            begin = place + 1
    if begin < len(text):
        yield text[begin:]


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
def _get_operation(**arguments: Any) -> Op:
    return Op.range(**get_arguments(**arguments))


@click.command("del", add_help_option=False)
@delete_options
def _delete_operation(key: bytes, end: bytes | None, prefix: bool, from_key: bool, prev: bool) -> Op:
    return Op.delete(**selected(key, end, prefix, from_key), prev=prev)


_OPERATIONS = {"put": _put_operation, "get": _get_operation, "del": _delete_operation}
