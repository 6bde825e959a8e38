"""Eight float32 lanes as one value in numba: what the kernels are written in.

numba's auto-vectoriser leaves a factor of about two on the table in branchy pixel loops; an explicit 8-lane type
does not. `Lanes` is an LLVM `<8 x float>` (one AVX register; LLVM splits it where registers are shorter) and `Flags`
an `<8 x i1>`. Operators + - * work on Lanes; everything else is a named function below. No function here allocates.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import operator

from llvmlite import ir
from numba import float32 as f
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.extending import intrinsic, overload, register_model

from cgc.kernels import kernel

WIDTH = 8
_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VEC = ir.VectorType(_F32, WIDTH)
_IVEC = ir.VectorType(_I32, WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)


class LanesType(types.Type):
    """numba's name for <8 x float>."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


class FlagsType(types.Type):
    """numba's name for <8 x i1>."""

    def __init__(self) -> None:
        super().__init__(name="Flags")


LANES = LanesType()
FLAGS = FlagsType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VEC)


@register_model(FlagsType)
class _FlagsModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _BITS)


def _call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _fill(builder, value):
    one = builder.insert_element(ir.Constant(_VEC, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(_VEC, ir.Undefined), ir.Constant(_IVEC, [0] * WIDTH))


@intrinsic
def splat(typingctx, x):
    """Eight copies of a float32."""
    if not isinstance(x, types.Float):
        return None

    def codegen(context, builder, signature, args):
        return _fill(builder, context.cast(builder, args[0], signature.args[0], types.float32))

    return LANES(x), codegen


@intrinsic
def iota(typingctx):
    """The lanes' own numbers, 0 to 7."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_VEC, [float(i) for i in range(WIDTH)])

    return LANES(), codegen


def _pointer(context, builder, array_type, array, index, index_type):
    made = context.make_array(array_type)(context, builder, array)
    where = context.cast(builder, index, index_type, types.intp)
    return builder.gep(made.data, [where])


@intrinsic
def load(typingctx, array, index):
    """Eight float32 of a contiguous 1-D array from `index` on."""
    if not (isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[1])
        return builder.load(builder.bitcast(pointer, _VEC.as_pointer()), align=4, typ=_VEC)

    return LANES(array, index), codegen


@intrinsic
def broadcast(typingctx, array, index):
    """Eight copies of one float32 of a contiguous 1-D array; the index is not negative."""
    if not (isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[1])
        return _fill(builder, builder.load(pointer, align=4, typ=_F32))

    return LANES(array, index), codegen


@intrinsic
def store(typingctx, array, index, lanes):
    """Write eight float32 to a contiguous 1-D array from `index` on."""
    if not (isinstance(array, types.Array) and array.dtype == types.float32 and isinstance(lanes, LanesType)):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[1])
        builder.store(args[2], builder.bitcast(pointer, _VEC.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, index, lanes), codegen


def _binary(name):
    @intrinsic
    def op(typingctx, a, b):
        if not (isinstance(a, LanesType) and isinstance(b, LanesType)):
            return None

        def codegen(context, builder, signature, args):
            return getattr(builder, name)(args[0], args[1], flags=("contract",))

        return LANES(a, b), codegen

    return op


_add, _sub, _mul = _binary("fadd"), _binary("fsub"), _binary("fmul")


@overload(operator.add)
def _overload_add(a, b):
    if isinstance(a, LanesType) and isinstance(b, LanesType):
        return lambda a, b: _add(a, b)


@overload(operator.sub)
def _overload_sub(a, b):
    if isinstance(a, LanesType) and isinstance(b, LanesType):
        return lambda a, b: _sub(a, b)


@overload(operator.mul)
def _overload_mul(a, b):
    if isinstance(a, LanesType) and isinstance(b, LanesType):
        return lambda a, b: _mul(a, b)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c."""

    def codegen(context, builder, signature, args):
        return _call(builder, "llvm.fma.v8f32", _VEC, list(args))

    return LANES(a, b, c), codegen


def _binary_call(llvm_name):
    @intrinsic
    def op(typingctx, a, b):
        if not (isinstance(a, LanesType) and isinstance(b, LanesType)):
            return None

        def codegen(context, builder, signature, args):
            return _call(builder, llvm_name, _VEC, list(args))

        return LANES(a, b), codegen

    return op


def _unary_call(llvm_name):
    @intrinsic
    def op(typingctx, a):
        if not isinstance(a, LanesType):
            return None

        def codegen(context, builder, signature, args):
            return _call(builder, llvm_name, _VEC, list(args))

        return LANES(a), codegen

    return op


minimum, maximum = _binary_call("llvm.minnum.v8f32"), _binary_call("llvm.maxnum.v8f32")
sqrt, magnitude = _unary_call("llvm.sqrt.v8f32"), _unary_call("llvm.fabs.v8f32")


@intrinsic
def divide(typingctx, a, b):
    """a / b."""

    def codegen(context, builder, signature, args):
        return builder.fdiv(args[0], args[1])

    return LANES(a, b), codegen


def _compare(relation):
    @intrinsic
    def op(typingctx, a, b):
        if not (isinstance(a, LanesType) and isinstance(b, LanesType)):
            return None

        def codegen(context, builder, signature, args):
            return builder.fcmp_ordered(relation, args[0], args[1])

        return FLAGS(a, b), codegen

    return op


greater, greater_equal, less_equal = _compare(">"), _compare(">="), _compare("<=")


@intrinsic
def both(typingctx, a, b):
    """Lanes flagged in a and in b."""

    def codegen(context, builder, signature, args):
        return builder.and_(args[0], args[1])

    return FLAGS(a, b), codegen


@intrinsic
def select(typingctx, flags, a, b):
    """a where flagged, else b."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return LANES(flags, a, b), codegen


@intrinsic
def bits(typingctx, flags):
    """The flags as an integer, lane 0 in the lowest bit."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(8)), ir.IntType(64))

    return types.uint64(flags), codegen


@intrinsic
def lowest_bit(typingctx, x):
    """Index of the lowest set bit of a uint64 (which is not 0)."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def total(typingctx, a):
    """Sum of the lanes, as a tree (the same order on every machine)."""

    def codegen(context, builder, signature, args):
        value = args[0]
        for half in (4, 2, 1):
            order = ir.Constant(_IVEC, [(i + half) % WIDTH for i in range(WIDTH)])
            value = builder.fadd(value, builder.shuffle_vector(value, value, order))
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(a), codegen


@intrinsic
def _add_to_exponent(typingctx, p, n):
    """p * 2^n, where n is the low bits of a float32 that was rounded by adding _ROUNDER: integers do it."""

    def codegen(context, builder, signature, args):
        bits_of_p, bits_of_n = builder.bitcast(args[0], _IVEC), builder.bitcast(args[1], _IVEC)
        exponent = builder.shl(bits_of_n, ir.Constant(_IVEC, [23] * WIDTH))
        return builder.bitcast(builder.add(bits_of_p, exponent), _VEC)

    return LANES(p, n), codegen


_ROUNDER = 1.5 * 2**23  # adding it leaves the whole part of a small number in the lowest bits


@kernel
def exp2(x):
    """2^x for x in [-126, 0], to 2e-7 relative: range reduction and a minimax polynomial.

    Anything may come out under -126: the caller selects those lanes away.
    """
    rounded = x + splat(f(_ROUNDER))
    r = x - (rounded - splat(f(_ROUNDER)))  # in [-0.5, 0.5]
    p = fma(splat(f(1.327647215e-3)), r, splat(f(9.675541662e-3)))
    p = fma(p, r, splat(f(5.550713276e-2)))
    p = fma(p, r, splat(f(2.402211972e-1)))
    p = fma(p, r, splat(f(6.931469671e-1)))
    p = fma(p, r, splat(f(1.000000072)))
    return _add_to_exponent(p, rounded)


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of array[index], which will be read soon; any index is safe."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[1])
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = _I32(0), _I32(3), _I32(1)
        builder.call(function, [builder.bitcast(pointer, byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, index), codegen


_TRANSPOSED = (0, 2, 1, 3, 4, 6, 5, 7)  # where the butterflies of `transpose_block` leave each column


def _shuffled(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


@intrinsic
def totals(typingctx, a, b, c, d, e, g, h, i):
    """The sums of eight Lanes as one: lane k is the sum of the k-th argument; summed as a fixed tree."""

    def codegen(context, builder, signature, args):
        def pairs(x, y):
            even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
            return builder.fadd(_shuffled(builder, x, y, even), _shuffled(builder, x, y, odd))

        quads = [pairs(pairs(*args[k : k + 2]), pairs(*args[k + 2 : k + 4])) for k in (0, 4)]
        low = _shuffled(builder, *quads, [0, 1, 2, 3, 8, 9, 10, 11])
        return builder.fadd(low, _shuffled(builder, *quads, [4, 5, 6, 7, 12, 13, 14, 15]))

    return LANES(a, b, c, d, e, g, h, i), codegen


@intrinsic
def store_half(typingctx, array, index, lanes):
    """Write the first four lanes to a contiguous 1-D array from `index` on."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[1])
        half = _shuffled(builder, args[2], args[2], [0, 1, 2, 3])
        builder.store(half, builder.bitcast(pointer, half.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, index, lanes), codegen


@intrinsic
def transpose_block(typingctx, source, at, step, target, to, pace):
    """target[to + pace k + i] = source[at + step i + k] for i, k in 0 to 7, contiguous 1-D float32 arrays."""

    def codegen(context, builder, signature, args):
        kinds = signature.args

        def vector(array, first, stride, k):
            start = context.cast(builder, args[first], kinds[first], types.intp)
            gap = context.cast(builder, args[stride], kinds[stride], types.intp)
            where = builder.add(start, builder.mul(gap, ir.IntType(64)(k)))
            made = context.make_array(kinds[array])(context, builder, args[array])
            return builder.bitcast(builder.gep(made.data, [where]), _VEC.as_pointer())

        rows = [builder.load(vector(0, 1, 2, k), align=4, typ=_VEC) for k in range(8)]
        for low, high, apart in (
            ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15], 1),
            ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15], 2),
            ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15], 4),
        ):
            mixed = list(rows)
            for k in range(8):
                if not k & apart:
                    mixed[k] = _shuffled(builder, rows[k], rows[k + apart], low)
                    mixed[k + apart] = _shuffled(builder, rows[k], rows[k + apart], high)
            rows = mixed
        for k, place in enumerate(_TRANSPOSED):
            builder.store(rows[place], vector(3, 4, 5, k), align=4)
        return context.get_dummy_value()

    return types.void(source, at, step, target, to, pace), codegen
