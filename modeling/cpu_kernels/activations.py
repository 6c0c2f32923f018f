"""GELU, ReLU, and the exponential that the kernels share."""

from math import factorial

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.compiled import inlined, kernel
from projects.SegFormer.modeling.cpu_kernels.products import rows_of
from projects.SegFormer.modeling.cpu_kernels.threads import in_parallel, joined, pieces

F = np.float32
Int = np.int32

# Coefficients, the highest power's first: of the Taylor series of e^r, and of Mills' ratio.
EXPONENTIAL = tuple(F(1 / factorial(n)) for n in range(7, -1, -1))
_mills = [0.0894220769, -0.394044486, 0.517242907, -0.134557152]
_mills += [0.322252079, 0.250447262, 0.302685069, 0.299866197]
MILLS = tuple(map(F, _mills))


@inlined
def polynomial(coefficients, x):
    result = coefficients[0]
    for i in range(1, len(coefficients)):
        result = result * x + coefficients[i]
    return result


@inlined
def exp(x):
    """e^x, x at most 88, within 1e-7 of it; what is below -87 is taken for -87.

    2^n * e^r with a whole n and |r| <= ln(2) / 2. In a loop `x` should be an element of an array:
    of a difference with a variable LLVM 14 makes no vectors.
    """
    x = F(-87) if x < F(-87) else x
    n = np.floor(x * F(1.4426950408889634) + F(0.5))
    r = x - n * F(0.693359375) + n * F(2.12194440e-4)  # ln(2) in two parts: the first is exact
    return polynomial(EXPONENTIAL, r) * Int((Int(n) + Int(127)) << Int(23)).view(np.float32)


@inlined
def normal(x):
    """Density f(x) and distribution F(x) of the normal distribution.

    F(-|x|) = f(x) * m(|x|) with Mills' ratio m, here a polynomial in t = 1 / (1 + 0.3 |x|) that was
    fitted to it by least squares: relatively within 1.5e-7.
    """
    t = F(1) / (F(1) + F(0.3) * np.abs(x))
    density = F(0.3989422804014327) * exp(F(-0.5) * x * x)
    tail = density * polynomial(MILLS, t) * t
    return density, F(1) - tail if x > F(0) else tail


@operator
def gelu(x):
    """x * F(x) with the distribution function F of the normal distribution, exactly.

    Source: Hendrycks and Gimpel 2016. Shape: any.
    """
    flat, result = x.reshape(-1), np.empty(x.size, F)
    in_parallel(lambda part: _gelu(flat[part], result[part]), pieces(x.size, 1))

    def backward(gradient):
        gradient, of_x = gradient.reshape(-1), np.empty(x.size, F)
        in_parallel(
            lambda part: _gelu_gradient(flat[part], gradient[part], of_x[part]), pieces(x.size, 1)
        )
        return of_x.reshape(x.shape)

    return result.reshape(x.shape), backward


@kernel
def _gelu(x, result):
    for i in range(len(x)):
        result[i] = x[i] * normal(x[i])[1]


@kernel
def _gelu_gradient(x, gradient, of_x):
    for i in range(len(x)):
        density, distribution = normal(x[i])
        of_x[i] = gradient[i] * (distribution + x[i] * density)


@operator
def relu(x):
    """max(x, 0). Shape: (..., C)."""
    shape, rows = x.shape, rows_of(x)
    parts = pieces(*rows.shape)
    result = joined(lambda part: np.maximum(rows[part], 0), parts, rows)

    def backward(gradient):
        gradient = rows_of(gradient)
        found = joined(lambda part: gradient[part] * (result[part] > 0), parts, result)
        return found.reshape(shape)

    return result.reshape(shape), backward


@operator
def scaled(x, *, factors):
    """x times constant factors. Shape: (N, ..., C), (N, C) or (N, 1) -> (N, ..., C)."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    parts = [(image, part) for image in range(len(x)) for part in pieces(*rows.shape[1:])]

    def multiply(values):
        values = values.reshape(rows.shape)
        return joined(lambda at: values[at] * factors[at[0]], parts, rows).reshape(x.shape)

    return multiply(x), multiply
