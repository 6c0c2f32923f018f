"""Pickles as data: what is in one is read, and nothing of what it names is imported or called.

Python's own unpickler imports and calls what a pickle names, and takes memory for what it only
claims. Here its opcodes (pickletools has their list and arguments) are carried out on plain
containers. A name that a pickle holds is one of three:

- of `BUILDERS`, or of those that the caller adds: the function there is called in its place;
- of `RECORDS`, settings and paths that stand beside weights: it becomes a `Record`;
- any other: the file is refused, by that name.
"""

import pickletools
from collections.abc import Callable, Mapping, Sized
from typing import BinaryIO

import numpy as np

from projects.SegFormer.modeling.bounds import PICKLE_BYTES, PICKLE_STEPS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import check_nesting

VALUE_BYTES = 100  # of a value in a container, about
NUMBER_KEYS = 4_000  # in a dict


class Record:
    """Something that was named and not built: a class or function, or an object of it.

    Attributes:
        name: module and name, "argparse.Namespace".
        args, state, items: what it would have been built from.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items = name, args, None, []


# Python's own types, by the names that they had before Python 3 too: old protocols write those.
_PLAIN = ("dict", "list", "tuple", "int", "float", "str", "bool", "slice")
# Whole names, or modules with all in them, whose objects tell something and do nothing here.
RECORDS = (
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any", "numpy.ndarray"),
    *("torch.Size", "torch.device", "torch.torch_version.TorchVersion"),
    *(f"builtins.{name}" for name in ("object", "type", "range", *_PLAIN)),
    *(f"__builtin__.{name}" for name in ("object", "type", *_PLAIN, "unicode", "long", "xrange")),
    *("numpy.dtype", "uuid.UUID", "decimal.Decimal", "yacs.config.CfgNode"),
    *("pathlib.", "datetime.", "enum.", "omegaconf.", "mmcv.", "mmengine.", "addict.", "easydict."),
    *("fvcore.", "detectron2.config.", "lightning.", "lightning_fabric.", "pytorch_lightning."),
)


def load_pickle(
    stream: BinaryIO,
    builders: Mapping[str, Callable] | None = None,
    persistent: Callable | None = None,
    records: tuple[str, ...] = (),
):
    """The value of the pickle that `stream` stands at; it stands behind it afterwards.

    Args:
        builders: by name, what is called in the place of a function or class that the pickle calls.
            What comes of it may have a method `build`, for the state that the pickle gives it.
        persistent: called with the persistent ids.
        records: besides RECORDS.
    Raises InputError, or another exception for a pickle that is broken.
    """
    return _Machine(_Bounded(stream), {**BUILDERS, **(builders or {})}, persistent, records).run()


class _Bounded:
    """A stream of which so much can be read, whatever length an argument claims."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._left = stream, PICKLE_BYTES
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise InputError(f"its pickle is cut off, or larger than {PICKLE_BYTES:,} bytes")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(self._left)
        self._left -= len(line)
        return line


class _Mark:
    """Where on the stack the items of a container begin."""


class _Machine:
    """The pickle machine (pickletools' description of it) on plain containers."""

    def __init__(self, stream, builders, persistent, records):
        self._stream, self._persistent = stream, persistent
        self._builders, self._records = builders, RECORDS + records
        self._stack, self._memo = [], {}
        self._handed_over = 0

    def run(self):
        for step, (opcode, argument, _) in enumerate(pickletools.genops(self._stream)):
            if step > PICKLE_STEPS:
                raise InputError(f"its pickle has more than {PICKLE_STEPS:,} steps")
            name = opcode.name
            if name == "STOP":
                value = self._stack.pop()
                check_nesting(value, 10 * step)
                return value
            if name in _PUSHES_ITS_ARGUMENT:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name not in _IGNORED:
                self._carry_out(name, argument)
        raise InputError("its pickle is cut off")

    def _carry_out(self, name, argument):
        stack, memo = self._stack, self._memo
        match name:
            case "MARK":
                stack.append(_Mark)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._from_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                items = self._from_mark()
                stack.append(_put({}, items) if name == "DICT" else _MAKES[name](items))
            case "APPEND":
                value = stack.pop()
                _extend(stack[-1], [value])
            case "APPENDS":
                items = self._from_mark()
                _extend(stack[-1], items)
            case "ADDITEMS":
                items = self._from_mark()
                _add(stack[-1], items)
            case "SETITEM":
                items = stack[-2:]
                del stack[-2:]
                _put(stack[-1], items)
            case "SETITEMS":
                items = self._from_mark()
                _put(stack[-1], items)
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._named(module, attribute))
            case "INST":
                stack.append(self._call(self._named(*argument.split(" ", 1)), self._from_mark()))
            case "OBJ":
                named, *arguments = self._from_mark()
                stack.append(self._call(named, arguments))
            case "REDUCE" | "NEWOBJ":
                arguments, named = stack.pop(), stack.pop()
                stack.append(self._call(named, arguments))
            case "NEWOBJ_EX":
                keywords, arguments, named = stack.pop(), stack.pop(), stack.pop()
                if keywords:
                    raise InputError(f"it builds {_name_of(named)} by keywords")
                stack.append(self._call(named, arguments))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "PERSID" | "BINPERSID":
                reference = argument if name == "PERSID" else stack.pop()
                if self._persistent is None:
                    raise InputError("it refers to something outside of it")
                stack.append(self._persistent(reference))
            case _:
                raise InputError(f"its pickle uses {name}, which nothing that is data needs")

    def _from_mark(self) -> list:
        """What was put on the stack since the last mark, taken off with the mark."""
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not _Mark:
            place -= 1
            if place < 0:
                raise InputError("its pickle is broken")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def _named(self, module, attribute) -> Record:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise InputError("its pickle is broken")
        name = f"{module}.{attribute}"
        if name in self._builders or name in self._records:
            return Record(name)
        if any(known[-1] == "." and name.startswith(known) for known in self._records):
            return Record(name)
        raise Refused(name)

    def _call(self, named, arguments):
        if not isinstance(named, Record) or not isinstance(arguments, (tuple, list)):
            raise InputError("its pickle is broken")
        if named.name in self._builders:
            self._count(arguments)
            return self._builders[named.name](*arguments)
        return Record(named.name, tuple(arguments))

    def _build(self, target, state) -> None:
        if isinstance(target, Record):
            target.state = state
        elif hasattr(target, "build"):
            self._count(state.values() if isinstance(state, dict) else state)
            target.build(state)
        # Of plain containers it would be attributes, as the _metadata of PyTorch's state dicts.

    def _count(self, arguments) -> None:
        """A pickle can name a large value in two bytes, and have it copied a million times."""
        for argument in arguments:
            if isinstance(argument, Sized):
                is_text = isinstance(argument, (str, bytes, bytearray))
                self._handed_over += len(argument) * (1 if is_text else VALUE_BYTES)
        if self._handed_over > PICKLE_BYTES:
            raise InputError("its pickle builds more than it holds")


class Refused(InputError):
    """A pickle names what is not known to be data. Attribute `name`: module and name of it."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(
            f"it holds {name}, which could run code when it is read; expected tensors and plain "
            "values alone"
        )


_PUSHES_ITS_ARGUMENT = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
_CONSTANTS = dict(
    NONE=lambda: None,
    NEWTRUE=lambda: True,
    NEWFALSE=lambda: False,
    EMPTY_LIST=list,
    EMPTY_TUPLE=tuple,
    EMPTY_DICT=dict,
    EMPTY_SET=set,
)
_IGNORED = ("PROTO", "FRAME")
_MAKES = dict(TUPLE=tuple, LIST=list, FROZENSET=lambda items: frozenset(map(_checked_key, items)))


def _extend(target, items: list) -> None:
    target = target.items if isinstance(target, Record) else target
    if not isinstance(target, list):
        raise InputError("its pickle is broken")
    target.extend(items)


def _add(target, items: list) -> None:
    if not isinstance(target, set):
        raise InputError("its pickle is broken")
    _check_numbers(target, items)
    target.update(map(_checked_key, items))


def _put(target, items: list):
    """`target` with the pairs, key value key value ..., in it."""
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if isinstance(target, Record):
        target.items.extend(pairs)
    elif isinstance(target, dict):
        _check_numbers(target, items[::2])
        target.update((_checked_key(key), value) for key, value in pairs)
    else:
        raise InputError("its pickle is broken")
    return target


def _check_numbers(target: dict | set, keys: list) -> None:
    """Numbers can be chosen so that each is looked for in the places of all others."""
    has_numbers = any(isinstance(key, (int, float)) for key in keys)
    if has_numbers and len(target) + len(keys) > NUMBER_KEYS:
        raise InputError(f"it has a dict with more than {NUMBER_KEYS:,} numbers for keys")


def _checked_key(key):
    """A key whose hash takes no time: of nested tuples, and of large numbers, it may."""
    simple = (str, bytes, float, bool, type(None))
    parts = key if isinstance(key, tuple) and len(key) <= 8 else (key,)
    for part in parts:
        small = isinstance(part, int) and abs(part) < 2**60
        if not small and not isinstance(part, simple) and type(part) is not Record:
            raise InputError(f"it has a key of type {type(part).__name__}; expected names, numbers")
    return key


def _name_of(value) -> str:
    return value.name if isinstance(value, Record) else type(value).__name__


# ---- What is built ------------------------------------------------------------------------------


def _sequence(make: Callable, values=()):
    if not isinstance(values, (list, tuple)):
        raise InputError(f"it makes a container of a {_name_of(values)}")
    return make(values)


def _dict(values=(), *_) -> dict:
    if isinstance(values, dict):
        return dict(values)
    pairs = _sequence(list, values)
    return _put({}, [part for pair in pairs for part in _sequence(tuple, pair)])


def _bytes(values=b"", encoding="latin1") -> bytes:
    if isinstance(values, str):
        return _encoded(values, encoding)
    if not isinstance(values, (bytes, bytearray)):  # a number would ask for so many
        raise InputError(f"it makes bytes of a {_name_of(values)}")
    return bytes(values)


def _encoded(text, encoding="latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise InputError("its pickle is broken")
    return text.encode(encoding)


def _complex(real=0.0, imaginary=0.0) -> complex:
    return complex(float(real), float(imaginary))


def _reconstructed(named, base=None, state=None):
    """copyreg's way to an object of a class, as old protocols have it."""
    if not isinstance(named, Record):
        raise InputError("its pickle is broken")
    return Record(named.name)


class _Dtype:
    """numpy.dtype of numbers or text."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or len(code) > 8:
            raise InputError("it has an array of a dtype that is no number's")
        self.numpy = np.dtype(code)
        if self.numpy.kind not in "biufcSU":
            raise InputError(f"it has an array of dtype {code}; expected numbers or text")

    def build(self, state) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class Array:
    """numpy.ndarray of numbers or text, whose shape and values come as its state."""

    def __init__(self, *_):
        self._values = np.empty(0, np.float32)

    def build(self, state) -> None:
        _, shape, dtype, is_fortran, data = state
        values = np.frombuffer(_bytes(data), dtype.numpy)
        self._values = values.reshape(shape, order="F" if is_fortran else "C")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def dtype(self) -> np.dtype:
        return self._values.dtype

    def numpy(self) -> np.ndarray:
        return np.array(self._values, order="C")


def _from_buffer(data, dtype, shape, order) -> Array:
    array = Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype, data=b""):
    return np.frombuffer(_bytes(data), dtype.numpy)[0]


def _both(module: str, name: str, function: Callable) -> dict[str, Callable]:
    """Under NumPy's module names before and since 2.0."""
    return {f"numpy.{core}.{module}.{name}": function for core in ("core", "_core")}


BUILDERS: dict[str, Callable] = {
    **{
        f"{module}.{make.__name__}": lambda values=(), make=make: _sequence(make, values)
        for module in ("builtins", "__builtin__")
        for make in (list, tuple)
    },
    **{
        f"{module}.{make.__name__}": lambda values=(), make=make: _sequence(
            lambda items: make(_put({}, [part for item in items for part in (item, None)])), values
        )
        for module in ("builtins", "__builtin__")
        for make in (set, frozenset)
    },
    **{f"{module}.bytes": _bytes for module in ("builtins", "__builtin__")},
    **{f"{module}.bytearray": _bytes for module in ("builtins", "__builtin__")},
    **{f"{module}.complex": _complex for module in ("builtins", "__builtin__")},
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda factory=None, values=(): _dict(values),
    "collections.deque": lambda values=(), length=None: _sequence(list, values),
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "numpy.dtype": _Dtype,
    **_both("multiarray", "_reconstruct", Array),
    **_both("multiarray", "scalar", _scalar),
    **_both("numeric", "_frombuffer", _from_buffer),
}
