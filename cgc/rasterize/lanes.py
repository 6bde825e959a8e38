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
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.extending import intrinsic, overload, register_model

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
sqrt, absolute = _unary_call("llvm.sqrt.v8f32"), _unary_call("llvm.fabs.v8f32")
_round = _unary_call("llvm.nearbyint.v8f32")


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
        return builder.zext(builder.bitcast(args[0], ir.IntType(8)), _I32)

    return types.uint32(flags), codegen


@intrinsic
def lowest_bit(typingctx, x):
    """Index of the lowest set bit of a uint32 (which is not 0)."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.cttz(args[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.int64(types.uint32), codegen


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
def _scale_by_power_of_two(typingctx, a, n):
    """a * 2^n for whole n in [-126, 127]: n goes into the exponent's bits."""

    def codegen(context, builder, signature, args):
        whole = builder.fptosi(args[1], _IVEC)
        exponent = builder.shl(builder.add(whole, ir.Constant(_IVEC, [127] * WIDTH)), ir.Constant(_IVEC, [23] * WIDTH))
        return builder.fmul(args[0], builder.bitcast(exponent, _VEC))

    return LANES(a, n), codegen


@njit
def exp2(x):
    """2^x for x <= 0 (under -126 it is 2^-126), to 2e-7 relative: range reduction and a minimax polynomial."""
    x = maximum(x, splat(f(-126.0)))
    n = _round(x)
    r = x - n  # in [-0.5, 0.5]
    p = fma(splat(f(1.327647215e-3)), r, splat(f(9.675541662e-3)))
    p = fma(p, r, splat(f(5.550713276e-2)))
    p = fma(p, r, splat(f(2.402211972e-1)))
    p = fma(p, r, splat(f(6.931469671e-1)))
    p = fma(p, r, splat(f(1.000000072)))
    return _scale_by_power_of_two(p, n)
