"""Counter-based random numbers: a function of key and counter, in any thread and any order.

`fold_in(a, b)` makes a new 64-bit key of a key and a number; `uniform(pointer, key, first)` fills a
vector with values in [0, 1), lane by lane a function of the key and of first + lane. They are
multiples of 2⁻²⁴, the same for float32 and float64.

The algorithm is written once, in `splitmix`, `murmur` and `random_bits`, for operands that have
+, *, ^ and >>: `_Emitted` emits LLVM instructions, `Word` calculates in Python. The Python copies
`fold_in_python` and `uniform_python` serve the CUDA simulator and the tests.

`philox` fills memory with the words of the generator Philox 4×64, which is NumPy's too.

Source   Steele, Lea, Flood 2014 (SplitMix64, for the keys); Appleby 2011 (the finaliser of
         MurmurHash3, for the values); Salmon, Moraes, Dror, Shaw 2011 (Philox)
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.vectors import Vector, broadcast, vector_of

# --- the algorithm ----------------------------------------------------------------------------


def splitmix(key, number):
    """SplitMix64's finaliser of key + (number + 1) times the golden ratio, in 64 bits."""
    z = key + (number + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def murmur(z):
    """The finaliser of MurmurHash3, in 32 bits."""
    z = (z ^ (z >> 16)) * 0x85EBCA6B
    z = (z ^ (z >> 13)) * 0xC2B2AE35
    return z ^ (z >> 16)


def random_bits(counter, low, high):
    """24 random bits for a 32-bit counter and the two halves of a key."""
    return murmur(murmur((counter * 0x9E3779B9) ^ low) + high) >> 8


# --- in Python --------------------------------------------------------------------------------


class Word:
    """An unsigned integer of `bits` bits; arithmetic wraps around."""

    def __init__(self, value: int, bits: int):
        self.value, self.bits = value % 2**bits, bits

    def __add__(self, other):
        return Word(self.value + int(other), self.bits)

    def __mul__(self, other):
        return Word(self.value * int(other), self.bits)

    def __xor__(self, other):
        return Word(self.value ^ int(other), self.bits)

    def __rshift__(self, other):
        return Word(self.value >> int(other), self.bits)

    def __int__(self):
        return self.value


def fold_in_python(key, number) -> int:
    """Return what `fold_in` returns, calculated in Python."""
    value = int(splitmix(Word(int(key), 64), Word(int(number), 64)))
    return value - 2**64 if value >= 2**63 else value


def uniform_python(key, counter) -> float:
    """Return what `uniform_scalar` returns, calculated in Python."""
    low, high = Word(int(key), 32), Word(int(key) >> 32, 32)
    return int(random_bits(Word(int(counter), 32), low, high)) / 2**24


# --- in LLVM ----------------------------------------------------------------------------------


class _Emitted:
    """An integer, or a vector of integers, whose arithmetic is emitted as LLVM instructions."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _other(self, other):
        """The LLVM value of an operand; an int becomes a constant, in every lane."""
        if isinstance(other, _Emitted):
            return other.value
        kind = self.value.type
        return ir.Constant(kind, [other] * kind.count if isinstance(kind, ir.VectorType) else other)

    def __add__(self, other):
        return _Emitted(self.builder, self.builder.add(self.value, self._other(other)))

    def __mul__(self, other):
        return _Emitted(self.builder, self.builder.mul(self.value, self._other(other)))

    def __xor__(self, other):
        return _Emitted(self.builder, self.builder.xor(self.value, self._other(other)))

    def __rshift__(self, other):
        return _Emitted(self.builder, self.builder.lshr(self.value, self._other(other)))


def _emit_uniform(builder, kind, key, first):
    """Values in [0, 1) of the LLVM type `kind`, a float or a vector, for counters first, …"""
    half = ir.IntType(32)
    vector = ir.VectorType(half, kind.count) if isinstance(kind, ir.VectorType) else None

    def every(number):
        number = builder.trunc(number, half)
        return number if vector is None else broadcast(builder, number, vector)

    counter = every(first)
    if vector is not None:
        counter = builder.add(counter, ir.Constant(vector, list(range(vector.count))))
    low, high = every(key), every(builder.lshr(key, ir.IntType(64)(32)))
    words = (_Emitted(builder, word) for word in (counter, low, high))
    values = builder.uitofp(random_bits(*words).value, kind)
    scale = 2.0**-24
    return builder.fmul(
        values, ir.Constant(kind, scale if vector is None else [scale] * kind.count)
    )


@intrinsic
def fold_in(typingctx, a, b):
    """A 64-bit key from a key and a number."""
    if isinstance(a, types.Integer) and isinstance(b, types.Integer):

        def codegen(context, builder, signature, args):
            return splitmix(*(_Emitted(builder, word) for word in args)).value

        return types.int64(types.int64, types.int64), codegen


@intrinsic
def uniform(typingctx, pointer, key, first):
    """A vector of values in [0, 1), of the type that `pointer` points to, for counters first, …"""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return _emit_uniform(builder, vector_of(pointer.dtype), args[1], args[2])

        return Vector(pointer.dtype)(pointer, types.int64, types.int64), codegen


@intrinsic
def uniform_scalar(typingctx, key, counter):
    """One value in [0, 1), the one that `uniform` has for this counter, as float64."""
    if isinstance(key, types.Integer):

        def codegen(context, builder, signature, args):
            return _emit_uniform(builder, ir.DoubleType(), args[0], args[1])

        return types.float64(types.int64, types.int64), codegen


# --- Philox -----------------------------------------------------------------------------------

_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


@intrinsic
def philox(typingctx, words, low, high, counter):
    """Write the eight 32-bit words of one counter, of the key (low, high), to `words`, uint32."""
    if isinstance(words, types.CPointer) and words.dtype == types.uint32:

        def codegen(context, builder, signature, args):
            word, double = ir.IntType(64), ir.IntType(128)

            def product(x, factor):
                """The high and the low half of x times the factor."""
                both = builder.mul(builder.zext(x, double), double(factor))
                high_half = builder.trunc(builder.lshr(both, double(64)), word)
                return high_half, builder.trunc(both, word)

            key, c = list(args[1:3]), [args[3], word(0), word(0), word(0)]
            for _ in range(_ROUNDS):
                (high0, low0), (high1, low1) = (
                    product(c[0], _FACTORS[0]),
                    product(c[2], _FACTORS[1]),
                )
                first, third = (builder.xor(a, b) for a, b in ((high1, c[1]), (high0, c[3])))
                c = [builder.xor(first, key[0]), low1, builder.xor(third, key[1]), low0]
                key = [builder.add(k, word(step)) for k, step in zip(key, _WEYL, strict=True)]
            place = builder.bitcast(args[0], word.as_pointer())
            for k, value in enumerate(c):
                builder.store(value, builder.gep(place, [word(k)]), align=4)
            return context.get_dummy_value()

        return types.void(words, types.int64, types.int64, types.int64), codegen
