"""What people define in a notebook. Run as the text of a `__main__` without a file, one cell after another.

Each case is a cell that leaves `fn`, `args` and the expected result in `want`. The loading process sees none of it.
"""

from __future__ import annotations

CASES = {
    "a lambda": "fn = lambda x: x * 2; args = (4,); want = 8",
    "a closure": """
def outer(k):
    def inner(x):
        return x * k
    return inner
fn, args, want = outer(3), (4,), 12
""",
    "a recursive function": """
def fact(n):
    return 1 if n < 2 else n * fact(n - 1)
fn, args, want = fact, (5,), 120
""",
    "functions that call each other": """
def is_even(n):
    return n == 0 or is_odd(n - 1)
def is_odd(n):
    return n != 0 and is_even(n - 1)
fn, args, want = is_even, (10,), True
""",
    "a recursive closure": """
def make():
    def count(n):
        return n and 1 + count(n - 1)
    return count
fn, args, want = make(), (7,), 7
""",
    "globals, modules and imports": """
import math, os.path
from json import dumps as to_json
FACTOR = 10
def use(x):
    return to_json([FACTOR * x, math.floor(2.5), os.path.basename('a/b')])
fn, args, want = use, (2,), '[20, 2, "b"]'
""",
    "a global that the function changes": """
_model = None
def load(x):
    global _model
    if _model is None:
        _model = ['loaded']
    _model.append(x)
    return _model
fn, args, want = load, (1,), ['loaded', 1]
""",
    "defaults and keyword defaults": """
def pick(a, b=[1, 2], *, c={'k': 3}):
    return a + b[1] + c['k']
fn, args, want = pick, (1,), 6
""",
    "a function with attributes": """
def tagged():
    return tagged.label
tagged.label = 'x'
fn, args, want = tagged, (), 'x'
""",
    "a decorated function": """
import functools
def twice(f):
    @functools.wraps(f)
    def wrapper(*args):
        return 2 * f(*args)
    return wrapper
@twice
def add(a, b):
    return a + b
fn, args, want = (lambda: (add(1, 2), add.__name__, add.__wrapped__(1, 2))), (), (6, 'add', 3)
""",
    "functools.cache": """
import functools
@functools.cache
def load(x):
    return [x]
fn, args, want = (lambda x: (load(x) is load(x), load.cache_info().hits)), (1,), (True, 1)
""",
    "lru_cache with its parameters": """
import functools
@functools.lru_cache(maxsize=7, typed=True)
def load(x):
    '''Loads.'''
    return x
load(1)
load.extra = 'kept'
def use():
    return load.cache_parameters(), load.cache_info().currsize, load.__name__, load.__doc__, load.extra
fn, args, want = use, (), ({'maxsize': 7, 'typed': True}, 0, 'load', 'Loads.', 'kept')
""",
    "a recursive function with lru_cache": """
import functools
@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
fn, args, want = fib, (60,), 1548008755920
""",
    "a method with lru_cache": """
import functools
class Reader:
    @functools.lru_cache
    def read(self, x):
        return [x]
    @staticmethod
    @functools.lru_cache
    def load(x):
        return [x]
fn, args, want = (lambda r: (r.read(1) is r.read(1), r.load(2) is Reader.load(2))), (Reader(),), (True, True)
""",
    "a class": """
class Base:
    made = 0
    def __init__(self, x):
        self.x = x
    def value(self):
        return self.x
class Derived(Base):
    def value(self):
        return super().value() + 1
    @property
    def double(self):
        return 2 * self.x
    @classmethod
    def make(cls):
        return cls(5)
    class Inner:
        y = 3
fn = lambda d: (d.value(), d.double, type(d).make().value(), d.Inner.y, isinstance(d, Base))
args, want = (Derived(1),), (2, 2, 6, 3, True)
""",
    "a bound method": """
class Scale:
    def __init__(self, k):
        self.k = k
    def apply(self, x):
        return self.k * x
fn, args, want = Scale(3).apply, (2,), 6
""",
    "a callable object": """
class Add:
    def __init__(self, k):
        self.k = k
    def __call__(self, x):
        return self.k + x
fn, args, want = Add(3), (2,), 5
""",
    "partial": """
import functools
def power(a, b):
    return a ** b
fn, args, want = functools.partial(power, b=2), (3,), 9
""",
    "a dataclass": """
import dataclasses
@dataclasses.dataclass
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    z: int
fn = lambda p, f: (dataclasses.replace(p, x=2) == Point(2, [1]), f == Frozen(1), hash(f) == hash(Frozen(1)))
args, want = (Point(1, [1]), Frozen(1)), (True, True, True)
""",
    "an enum": """
import enum
class Colour(enum.Enum):
    RED = 1
    @property
    def label(self):
        return self.name.lower()
class Bits(enum.Flag):
    A = 1
    B = 2
fn = lambda c, b: (c is Colour.RED, c.label, Colour(1) is c, b == Bits.A | Bits.B)
args, want = (Colour.RED, Bits.A | Bits.B), (True, 'red', True, True)
""",
    "named tuples": """
import collections, typing
Pair = collections.namedtuple('Pair', 'a b')
class Typed(typing.NamedTuple):
    c: int = 3
fn = lambda p, t: (p._replace(a=5) == Pair(5, 2), t.c, t == Typed())
args, want = (Pair(1, 2), Typed()), (True, 3, True)
""",
    "type variables and generics": """
import typing
T = typing.TypeVar('T')
class Box(typing.Generic[T]):
    def __init__(self, x: T) -> None:
        self.x = x
def unbox(b: Box[T]) -> T:
    assert T.__name__ == 'T'
    return b.x
fn, args, want = unbox, (Box[int](3),), 3
""",
    "protocols, abstract classes and typed dictionaries": """
import abc, typing
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def area(self):
        return 4
@typing.runtime_checkable
class HasArea(typing.Protocol):
    def area(self): ...
class Options(typing.TypedDict):
    n: int
fn = lambda s: (isinstance(s, Shape), isinstance(s, HasArea), s.area(), Options(n=1))
args, want = (Square(),), (True, True, 4, {'n': 1})
""",
    "generators and context managers": """
import contextlib
@contextlib.contextmanager
def opened(x):
    yield x + 1
def squares(n):
    yield from (i * i for i in range(n))
def use(n):
    with opened(n) as m:
        return list(squares(m))
fn, args, want = use, (2,), [0, 1, 4]
""",
    "a coroutine function": """
import asyncio
async def double(x):
    await asyncio.sleep(0)
    return 2 * x
fn, args, want = (lambda x: asyncio.run(double(x))), (2,), 4
""",
    "slots, descriptors and cached properties": """
import functools
class Slotted:
    __slots__ = ('a',)
    def __init__(self, a):
        self.a = a
class Lazy:
    @functools.cached_property
    def big(self):
        return [1]
fn, args, want = (lambda s, z: (s.a, z.big is z.big)), (Slotted(2), Lazy()), (2, True)
""",
    "an exception class": """
class MyError(ValueError):
    def __init__(self, code):
        super().__init__(code)
        self.code = code
def attempt():
    try:
        raise MyError(3)
    except ValueError as error:
        return error.code
fn, args, want = attempt, (), 3
""",
    "a metaclass": """
class Meta(type):
    registry = []
    def __new__(mcls, name, bases, namespace):
        cls = super().__new__(mcls, name, bases, namespace)
        cls.tag = name.lower()
        return cls
class Thing(metaclass=Meta):
    pass
fn, args, want = (lambda: (Thing.tag, type(Thing).__name__)), (), ('thing', 'Meta')
""",
    "plain arguments": "fn = lambda *a: a; args = (1, 'x', None, b'y', [2.5], {'k': (1,)}); want = args",
    "arrays": """
import numpy
table = numpy.arange(10_000.0)
def total(a):
    a += 1.0
    return float(a.sum() + table[-1])
fn, args, want = total, (numpy.zeros(5000),), 14999.0
""",
}
