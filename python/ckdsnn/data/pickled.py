"""Arrays, numbers and text from pickles, in which nothing is called and nothing is made that the file describes.

`pickle` builds what a file names; even with a list of allowed names, numpy's own functions for arrays and types do as
the file says, and a forged type makes numpy take bytes for pointers. Here the few opcodes and names that occur in
pickled dicts of arrays, numbers and text have a meaning, and anything else is an error.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST_OPCODES = 4_000_000  # CIFAR-100's labels as numpy numbers, in the wordiest protocol, take 1,900,000

_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class _Name(NamedTuple):
    """Something that the file wants to call; a name and nothing more."""

    module: str
    name: str


class _Type:
    """A type of numbers: its code is one of `_NUMBERS`."""

    def __init__(self, arguments: tuple) -> None:
        code = _word(arguments[0]) if arguments else ""
        if code not in _NUMBERS:
            raise ValueError("it has an array that is not of plain numbers")
        self.code, self.dtype = code, np.dtype(code)

    def build(self, state: object) -> None:
        # The version of the format, the byte order, then what only types other than numbers have.
        rest = (None, None, None, -1, -1, 0)
        if not isinstance(state, tuple) or len(state) != 8 or state[2:] != rest:
            raise ValueError("it has an array of a type with parts of its own")
        order = _word(state[1])
        if order not in ("|", "<", ">"):
            raise ValueError("it has an array of an unknown byte order")
        self.dtype = np.dtype(order + self.code)


class _Array:
    """An array of numbers, a view of the file's bytes; `value` is there once those are."""

    value: np.ndarray | None = None

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("it has an array without shape, type and content")
        _, shape, dtype, columns_first, content = state
        self.fill(content, dtype, shape, "F" if columns_first is True else "C")

    def fill(self, content: object, dtype: object, shape: object, order: str) -> None:
        if not isinstance(dtype, _Type) or not isinstance(content, bytes | bytearray):
            raise ValueError("it has an array without a type or without content")
        if not isinstance(shape, tuple) or len(shape) > 4 or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError("it has an array without a shape, or of more than 4 dimensions")
        if max(shape, default=0) > len(content) or math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise ValueError("it has an array of another size than its content")
        flat = np.frombuffer(content, dtype.dtype) if content else np.empty(0, dtype.dtype)
        self.value = flat.reshape(shape, order="F" if order == "F" else "C")


def _word(value: object) -> str:
    if isinstance(value, bytes):  # what Python 2 wrote
        value = value[:1001].decode("latin-1")
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError("it has something else where a name should be")
    return value


def _encode(arguments: tuple) -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2."""
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("it encodes something other than bytes")
    return text.encode("latin-1")


def _empty_bytes(arguments: tuple) -> bytes:
    if arguments:
        raise ValueError("it makes bytes of something")
    return b""


def _reconstruct(arguments: tuple) -> _Array:
    if arguments[0] != _Name("numpy", "ndarray"):
        raise ValueError("it has an array of a class of its own")
    return _Array()


def _frombuffer(arguments: tuple) -> _Array:
    content, dtype, shape, order = arguments
    array = _Array()
    array.fill(content, dtype, shape, _word(order))
    return array


def _scalar(arguments: tuple) -> object:
    dtype, content = arguments
    if not isinstance(dtype, _Type) or not isinstance(content, bytes) or len(content) != dtype.dtype.itemsize:
        raise ValueError("it has a number of another size than its content")
    return np.frombuffer(content, dtype.dtype).item()


_CALLS: dict[_Name, Callable[[tuple], object]] = {
    _Name("numpy", "dtype"): _Type,
    _Name("_codecs", "encode"): _encode,
    _Name("__builtin__", "bytes"): _empty_bytes,
    _Name("builtins", "bytes"): _empty_bytes,
    **{_Name(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{_Name(module, "scalar"): _scalar for module in _MULTIARRAY},
    **{_Name(module, "_frombuffer"): _frombuffer for module in _NUMERIC},
}
_KNOWN = {*_CALLS, _Name("numpy", "ndarray")}

# fmt: off
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _name(module: object, name: object) -> _Name:
    wanted = _Name(_word(module), _word(name))
    if wanted not in _KNOWN:
        raise ValueError(f"it wants to call {wanted.module[:100]}.{wanted.name[:100]}, which no file of data does")
    return wanted


class _Machine:
    """Pickle's stack machine, over the opcodes of plain data."""

    def __init__(self, size: int) -> None:
        self.stack: list = []
        self.below: list[list] = []  # the stacks under the marks
        self.memo: dict[int, object] = {}
        self.left = size  # bytes that may be made by encoding: each of the file once

    def run(self, raw: bytes) -> None:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if number >= MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES:,} parts")
            self.step(opcode.name, argument)

    def step(self, opcode: str, argument: object) -> None:
        stack = self.stack
        if opcode in _VALUES:
            stack.append(argument)
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]  # type: ignore[index]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])  # type: ignore[index]
        elif opcode in ("SHORT_BINSTRING", "BINSTRING", "STRING"):
            stack.append(argument.encode("latin-1"))  # type: ignore[attr-defined]
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            first = len(stack) - _TUPLES[opcode]
            if first < 0:
                raise ValueError("it takes more from its stack than there is")
            stack[first:] = [tuple(stack[first:])]
        elif opcode == "MARK":
            self.below.append(stack)
            self.stack = []
        elif opcode in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            self.to_mark(opcode)
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif opcode == "SETITEM":
            item, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, item])
        elif opcode == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))  # type: ignore[attr-defined]
        elif opcode == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(module, name))
        elif opcode == "REDUCE":
            arguments = stack.pop()
            stack.append(self.call(stack.pop(), arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Type | _Array):
                raise ValueError("it changes something other than an array")
            stack[-1].build(state)
        elif opcode in ("NEXT_BUFFER", "READONLY_BUFFER"):
            raise ValueError("its arrays were written to buffers elsewhere (pickle's buffer_callback)")
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it holds other things than data (opcode {opcode})")

    def to_mark(self, opcode: str) -> None:
        items, self.stack = self.stack, self.below.pop()
        if opcode == "TUPLE":
            self.stack.append(tuple(items))
        elif opcode == "LIST":
            self.stack.append(items)
        elif opcode == "DICT":
            self.stack.append({})
            _set(self.stack[-1], items)
        elif opcode == "APPENDS":
            _append(self.stack[-1], items)
        else:
            _set(self.stack[-1], items)

    def call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Name) or function not in _CALLS or not isinstance(arguments, tuple):
            raise ValueError("it calls something that is not a function")
        made = _CALLS[function](arguments)
        if isinstance(made, bytes):
            self.left -= len(made)
            if self.left < 0:
                raise ValueError("it repeats its content")
        return made


def _append(target: object, items: list) -> None:
    if not isinstance(target, list):
        raise ValueError("it appends to something other than a list")
    target.extend(items)


def _set(target: object, items: list) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("it sets items of something other than a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_word(key)] = value


def read_pickled(raw: bytes) -> dict[str, object]:
    """The dict in a pickle of any protocol, Python 2's included: its keys as str, its arrays read-only.

    Values are arrays of numbers, or int, float, bool, None, str and bytes, or tuples, lists and dicts of those (in
    which an array is not made one). Time and memory are bounded by the size of the file and by `MOST_OPCODES`.

    Raises:
        ValueError: the file is cut short or damaged, or holds anything else.

    Example:
        >>> import pickle
        >>> read_pickled(pickle.dumps({"labels": [3, 1], "data": np.zeros((2, 4), np.uint8)}))["data"].shape
        (2, 4)
    """
    machine = _Machine(len(raw))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about escapes in the file's text
            machine.run(raw)
        (content,) = machine.stack
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(said[:300]) from error
    if not isinstance(content, dict):
        raise ValueError("it holds no dict")
    return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}
