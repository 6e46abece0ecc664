"""Hadamard matrices: entries +-1, rows orthogonal, H H^T = n I; and the transform of the op ``qc.hadamard``.

Constructed in code, for n = m 2^k with the smallest m that one of these gives:

- Sylvester (1867): m = 1 or 2; the product of two matrices, by Kronecker, is one.
- Paley I (1933): m = q + 1 for a prime power q = 3 (mod 4): H = I + S with S = [[0, 1], [-1, Q]].
- Paley II: m = 2 (q + 1) for a prime power q = 1 (mod 4): H = C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] with C = [[0, 1], [1, Q]].

Q[a, b] = chi(a - b) with the quadratic character chi of the field of q elements. All orders up to 88 are among them; 92, 116, 156, 172
and others that take a search are not. A number of channels without a matrix gets blocks: ``block_of``.

**What is equal in all channels stays small.** Sylvester's matrix puts n times the mean of x into one element, which then decides the scale
of all: values after GELU or a ReLU have such a mean. So powers of two are products of

    B = [[1, 1, 1, 1], [1, -1, 1, -1], [-1, 1, 1, -1], [1, 1, -1, -1]]

(and of one [[1, 1], [1, -1]] where the exponent is odd, on the highest bit), whose columns sum to +-2 = +-sqrt(4): a constant c becomes
+-sqrt(n) c everywhere. It costs as many additions as Sylvester's. Of the small matrices rows are negated until the sums of their columns
are about as small. (A Boolean function with such a flat transform is called bent.)

The transform of a row x is x (H_m kron H_2^k): element a 2^k + b of a block takes part in k butterflies over b and in one product with
the small matrix over a, additions and subtractions all of them. |y| <= block max|x|.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

LARGEST_SMALL_ORDER = 512

# What kernels compute: the small matrix is written out, the power of two fills vectors.
LARGEST_ONLINE_ORDER, SMALLEST_RUN = 60, 4


@functools.cache
def hadamard_matrix(order: int) -> torch.Tensor:
    """H of that order, int8 [order, order], entries +-1.

    Raises:
        ValueError: no construction above gives that order.
    """
    small = small_order(order)
    if small is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    return torch.kron(small_matrix(small), _flat_power(order // small))


@functools.cache
def small_order(order: int) -> int | None:
    """The smallest m with a matrix of its own and order = m 2^k; None where there is none."""
    if order < 1:
        return None
    odd = order // (order & -order)
    candidates = (odd << k for k in range((order & -order).bit_length()))
    return next((m for m in candidates if m <= LARGEST_SMALL_ORDER and _construction(m) is not None), None)


def is_order(order: int) -> bool:
    """Whether ``hadamard_matrix`` gives a matrix of that order."""
    return small_order(order) is not None


def is_online_order(order: int) -> bool:
    """Whether the transform of that order is also computed by kernels, not only merged into weights."""
    small = small_order(order)
    return small is not None and small <= LARGEST_ONLINE_ORDER and order // small >= SMALLEST_RUN


def block_of(channels: int, *, online: bool = False) -> int:
    """The largest order that divides the number of channels: the size of the blocks of a block-diagonal transform; 1 leaves all alone.

    ``online``: of the orders that kernels compute.
    """
    known = is_online_order if online else is_order
    return next(size for size in range(channels, 0, -1) if size == 1 or (channels % size == 0 and known(size)))


@functools.cache
def small_matrix(order: int) -> torch.Tensor:
    """The matrix of an order that ``small_order`` gives, int8."""
    construction = _construction(order)
    if construction is None:
        raise ValueError(f"no Hadamard matrix of order {order} is constructed without another")
    kind, q = construction
    return _flattened({"trivial": _flat_power, "paley-1": _paley_one, "paley-2": _paley_two}[kind](q))


def hadamard(x: torch.Tensor, block: int, zero_point: int = 0) -> torch.Tensor:
    """(x - zero_point) H for each run of ``block`` elements of the last dimension; int32 for integers, exactly, else x's own type.

    Raises:
        ValueError: ``block`` does not divide the last dimension, or there is no such matrix.
    """
    small = small_order(block)
    if small is None or x.shape[-1] % block:
        raise ValueError(f"no Hadamard transform of {x.shape[-1]} channels in blocks of {block}")
    y = x if x.is_floating_point() else x.to(torch.int32) - zero_point
    y = _butterflies(y.reshape(-1, small, block // small))
    if small > 1:
        y = _times(y, small_matrix(small))
    return y.reshape(x.shape)


def _butterflies(y: torch.Tensor) -> torch.Tensor:
    """y H_2^k over the last dimension: two bits at a time, the lowest first."""
    size, step = y.shape[-1], 1
    while step < size:
        radix = min(4, size // step)
        parts = y.reshape(*y.shape[:-1], size // (radix * step), radix, step).unbind(-2)
        y = torch.stack(_pair(*parts) if radix == 2 else _four(*parts), -2).reshape(y.shape)
        step *= radix
    return y


def _pair(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    return [a + b, a - b]


def _four(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> list[torch.Tensor]:
    """By B: eight additions."""
    left, right, other = a + b, a - b, d - c
    return [left + other, right + (c + d), left - other, right - (c + d)]


def _times(y: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """sum over a of y[:, a, :] matrix[a, c]; in float64 for integers, which holds the sums of int32 exactly."""
    if y.is_floating_point():
        return torch.einsum("nab,ac->ncb", y, matrix.to(y.dtype))
    return torch.einsum("nab,ac->ncb", y.double(), matrix.double()).to(torch.int32)


def _flat_power(order: int) -> torch.Tensor:
    """Of a power of two: B kron B ..., the pair on the highest bit."""
    return _butterflies(torch.eye(order, dtype=torch.int8))


def _flattened(matrix: torch.Tensor) -> torch.Tensor:
    """Negate rows as long as that makes the fourth powers of the sums of the columns smaller."""
    result, rows = matrix.clone(), range(matrix.shape[0])
    sums = result.to(torch.int64).sum(0)
    while True:
        changed = False
        for row in rows:
            negated = sums - 2 * result[row]
            if int((negated**4).sum()) < int((sums**4).sum()):
                result[row], sums, changed = -result[row], negated, True
        if not changed:
            return result


@functools.cache
def _construction(order: int) -> tuple[str, int] | None:
    if order in (1, 2):
        return "trivial", order
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _prime_power(order - 1):
        return "paley-1", order - 1
    half = order // 2 - 1
    return ("paley-2", half) if half % 4 == 1 and _prime_power(half) else None


def _paley_one(q: int) -> torch.Tensor:
    skew = _bordered(q)
    skew[1:, 0] = -1
    return skew + torch.eye(q + 1, dtype=torch.int8)


def _paley_two(q: int) -> torch.Tensor:
    conference = _bordered(q)
    plus, minus = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(conference, plus) + torch.kron(torch.eye(q + 1, dtype=torch.int8), minus)


def _bordered(q: int) -> torch.Tensor:
    """[[0, 1], [1, Q]]."""
    matrix = torch.ones(q + 1, q + 1, dtype=torch.int8)
    matrix[0, 0] = 0
    matrix[1:, 1:] = _jacobsthal(q)
    return matrix


def _jacobsthal(q: int) -> torch.Tensor:
    """Q[a, b] = chi(a - b): 1 for a square, -1 for any other element, 0 for 0."""
    prime, degree = _prime_power(q) or (q, 1)
    elements = list(itertools.product(range(prime), repeat=degree))
    modulus = _irreducible(prime, degree)
    squares = {_product(x, x, modulus, prime) for x in elements if any(x)}
    character = {x: 0 if not any(x) else 1 if x in squares else -1 for x in elements}
    rows = [[character[tuple((i - j) % prime for i, j in zip(a, b, strict=True))] for b in elements] for a in elements]
    return torch.tensor(rows, dtype=torch.int8)


@functools.cache
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, d) with q = p^d, p prime."""
    prime = next((p for p in range(2, q + 1) if q % p == 0), None)
    if prime is None:
        return None
    degree = 0
    while q % prime == 0:
        q, degree = q // prime, degree + 1
    return (prime, degree) if q == 1 else None


Polynomial = tuple[int, ...]  # coefficients, the constant first


def _irreducible(prime: int, degree: int) -> Polynomial:
    """The low coefficients of a monic polynomial of that degree without a factor."""
    if degree == 1:
        return (0,)
    candidates = itertools.product(range(prime), repeat=degree)
    return next(low for low in candidates if not any(_divides(factor, (*low, 1), prime) for factor in _factors(prime, degree)))


def _factors(prime: int, degree: int) -> Iterator[Polynomial]:
    """Monic polynomials of degree 1 to degree / 2."""
    for size in range(1, degree // 2 + 1):
        for low in itertools.product(range(prime), repeat=size):
            yield (*low, 1)


def _divides(factor: Polynomial, polynomial: Polynomial, prime: int) -> bool:
    return not any(_remainder(polynomial, factor[:-1], prime))


def _product(a: Polynomial, b: Polynomial, modulus: Polynomial, prime: int) -> Polynomial:
    """a b modulo the monic polynomial whose low coefficients are ``modulus``."""
    whole = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            whole[i + j] += x * y
    return _remainder(tuple(whole), modulus, prime)


def _remainder(polynomial: Polynomial, modulus: Polynomial, prime: int) -> Polynomial:
    rest = list(polynomial)
    while len(rest) > len(modulus):
        leading = rest.pop()
        for i, coefficient in enumerate(modulus):
            rest[len(rest) - len(modulus) + i] -= leading * coefficient
    return tuple(value % prime for value in rest)
