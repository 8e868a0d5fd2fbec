"""Low-rank tracking of a matrix: what one matrix's gradient is sent as, two thin factors instead of all coordinates.

With G (m, n) the mean over ranks, r the low-rank dimension, and Q (n, r) the basis kept from the step before:

    P = orth(G Q),  Q+ = G^T P,  G is replaced by P Q+^T, and the next Q is orth(Q+)

Both products are linear in G, so ranks average their own and nobody needs G itself (PowerSGD, Vogels et al., 2019). One step is half of
a power iteration; started warm, it follows singular directions that drift. `f = |Q+|^2 / |G|^2` is the fidelity: the part of the energy
that is sent. When it falls under a part of its maximum since the last reset, the directions have jumped, and the next step begins with
power iterations. A fidelity may also fall because the matrix is less of low rank (error feedback adds what was left out): a reset that
does not help is followed by a pause, and each such pause is twice as long as the last one.

What all ranks compute from what all ranks know (`orthonormal`, `product`, `squares`, `coins`) gives the same bits on every instruction set,
matrix library and number of threads: it is made of single operations rounded by IEEE 754, and of matrix products of fixed-point numbers
so short that every sum is exact. What a rank computes from its own gradient goes through torch's matrix products as it is.

Factors are held as rows: P and Q as (r, m) and (r, n).
"""

from __future__ import annotations

from typing import Any, Protocol, final

import numpy as np
import torch

from commpress.errors import StateError

_DEPENDENT = 1e-10  # squared sine under which a row of fp32 numbers counts as a combination of those before it
_BLOCK = 1 << 18  # coordinates of a product made at once: they stay in a cache
_PAUSE, _LONGEST_PAUSE = 4, 1024  # steps
_NUMBERS = ("peak", "lost", "before", "judging", "pause", "wait")  # of a tracker's state
_PURPOSE = 11  # of the coins, in the Philox counter
_MASK = 0xFFFFFFFF


class KeyLike(Protocol):
    """What randomness is derived from; :class:`commpress.Key` is one."""

    @property
    def seed(self) -> int: ...

    def words(self) -> tuple[int, int, int]: ...


def worth_factors(rows: int, columns: int, dimension: int) -> bool:
    """Whether two factors of a matrix are fewer numbers than the matrix: r (m + n) < m n. Then r < min(m, n), too."""
    return dimension * (rows + columns) < rows * columns


def coins(key: KeyLike, count: int) -> torch.Tensor:
    """Uniform numbers in [-1, 1), float64 of shape (count,): word i mod 4 of Philox4x32-10 at counter (i div 4, key, purpose 11), as w / 2^31 - 1."""
    c1, c2, c3 = key.words()
    k0, k1 = key.seed & _MASK, key.seed >> 32
    mask, shift = np.uint64(_MASK), np.uint64(32)
    x = [np.arange(-(-count // 4), dtype=np.uint64)]
    x += [np.full_like(x[0], word) for word in (c1, c2 | _PURPOSE, c3)]
    for _ in range(10):
        p, q = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [(q >> shift) ^ x[1] ^ np.uint64(k0), q & mask, (p >> shift) ^ x[3] ^ np.uint64(k1), p & mask]
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    words = np.stack(x, axis=-1).reshape(-1)[:count]
    return torch.from_numpy(words.astype(np.float64) / 2.0**31 - 1.0)


def _bits(terms: int) -> int:
    """Of two whole numbers so that sums of that many products are exact in float64, in any order, with or without fused operations."""
    return (53 - max(terms - 1, 0).bit_length()) // 2


def _gram(x: np.ndarray) -> np.ndarray:
    """Inner products of the rows of `x` (r, m), float64 of shape (r, r): of the leading 2 `_bits(m)` bits of every row."""
    r, m = x.shape
    bits = _bits(m)
    exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1]
    scaled = np.ldexp(x, bits - exponent)
    both = np.empty((2 * r, m))
    high, low = both[:r], both[r:]
    np.rint(scaled, out=high)
    np.rint((scaled - high) * 2.0**bits, out=low)
    whole = torch.from_numpy(both)
    exact = (whole @ whole.T).numpy()
    cross = exact[:r, r:] + exact[r:, :r]
    found: np.ndarray = exact[:r, :r] + (cross + exact[r:, r:] * 2.0**-bits) * 2.0**-bits
    unit = np.ldexp(1.0, exponent - bits)
    return found * unit * unit.T


def row_squares(x: torch.Tensor) -> list[float]:
    """Sum of squares of each row of `x` (r, m)."""
    return _gram(x.double().numpy()).diagonal().tolist() if x.numel() else [0.0] * x.shape[0]


def squares(x: torch.Tensor) -> float:
    """Sum of squares of the rows of `x` (r, m)."""
    return _in_order(row_squares(x))


def _in_order(numbers: list[float]) -> float:
    """Their sum, which `sum` compensates from Python 3.12 on."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows that span what the given ones do, row i from rows 0 to i: Gram-Schmidt by two passes of Cholesky QR in float64.

    Args:
        rows: finite, shape (r, m), m >= 1.

    Returns:
        float32 of shape (r, m). A row that depends on those before it (to fp32's accuracy), or is zero, becomes zero.
    """
    x = rows.to(torch.float64, copy=True).numpy()
    for _ in range(2):
        gram = _gram(x)
        least = _DEPENDENT * gram.diagonal()
        for k in range(x.shape[0]):
            if not gram[k, k] > least[k]:
                x[k] = 0.0
                continue
            pivot = np.sqrt(gram[k, k])
            x[k] /= pivot
            column = gram[k + 1 :, k, None] / pivot
            # One elimination step on both: what is left of the later rows has no part along row k.
            gram[k + 1 :, k + 1 :] -= column * column.T
            x[k + 1 :] -= column * x[k]
    return torch.from_numpy(x.astype(np.float32))


def product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = left^T right``, exact for factors rounded to 53/2 bits of their largest number (24 bits up to r = 32).

    Args:
        left, right: float32 of shapes (r, m) and (r, n), r >= 1, finite.
        out: float32 of shape (m, n), written.
    """
    bits = _bits(left.shape[0])
    factors = []
    for factor in (left.double().numpy(), right.double().numpy()):
        exponent = np.frexp(np.abs(factor).max())[1]
        factors.append(torch.from_numpy(np.ldexp(np.rint(np.ldexp(factor, bits - exponent)), exponent - bits)))
    step = max(1, _BLOCK // out.shape[1])
    work = torch.empty(min(step, out.shape[0]), out.shape[1], dtype=torch.float64)
    for start in range(0, out.shape[0], step):
        part = out[start : start + step]
        part.copy_(torch.mm(factors[0][:, start : start + step].T, factors[1], out=work[: part.shape[0]]))
    return out


@final
class Tracker:
    """Follows the leading right singular directions of one matrix from step to step.

    Everything that it is told is equal on all ranks, and so is its state.

    Args:
        rows, columns: of the matrix.
        dimension: r, from 1 to below both.
        reset: fidelity under this part of its maximum since the last reset calls for another. 0: never.

    Attributes:
        basis: Q, float32 of shape (r, columns) with orthonormal rows, or None before the first update.
        peak: largest fidelity since the last reset, that step's own apart, which the power iterations flatter; 0: none yet.
        lost: the basis says little about the matrix: begin the next step with power iterations. True at first.
        before: the fidelity that called for the last reset. judging: whether the next update shows if it helped.
        pause: steps without a reset after one that did not help. wait: those that are left.
        spectrum: energy of each dimension in the last update, and `energy` that of the whole matrix; empty before it.
    """

    def __init__(self, rows: int, columns: int, dimension: int, *, reset: float = 0.7) -> None:
        self.rows = rows
        self.columns = columns
        self.dimension = dimension
        self.basis: torch.Tensor | None = None
        self.peak = 0.0
        self.lost = True
        self.before = 0.0
        self.judging = False
        self.pause = _PAUSE
        self.wait = 0
        self.spectrum: list[float] = []
        self.energy = 0.0
        self._reset = reset

    def start(self, key: KeyLike) -> torch.Tensor:
        """The basis to begin a step with; before the first update, and in dimensions that were added, from public coins."""
        if self.basis is not None and bool(self.basis.any(dim=1).all()):
            return self.basis
        return self.full(self.basis, key)

    def full(self, right: torch.Tensor | None, key: KeyLike) -> torch.Tensor:
        """orth(`right`), shape (r, columns), with random directions in place of what it lacks: a gradient of lower rank leaves rows zero."""
        shape = self.dimension, self.columns
        basis = torch.zeros(shape) if right is None else orthonormal(right)
        for attempt in range(4):
            missing = ~basis.any(dim=1)
            if not bool(missing.any()):
                break
            drawn = coins(key, (attempt + 1) * shape[0] * shape[1]).reshape(-1, *shape)[attempt]
            # The known directions go first, so that they stay as they are.
            order = torch.cat([torch.nonzero(~missing)[:, 0], torch.nonzero(missing)[:, 0]])
            mixed = torch.where(missing[:, None], drawn, basis.double())[order]
            basis = orthonormal(mixed)
        return basis

    def update(self, right: torch.Tensor, energy: float, key: KeyLike) -> float:
        """Ends a step.

        Args:
            right: Q+ as averaged, finite, (r, columns).
            energy: |G|^2, or the mean of the ranks' own where nobody knows the mean matrix. Where it is 0 nothing changes.
            key: of the coins.

        Returns:
            The fidelity, 0 for a zero matrix.
        """
        if not energy > 0:
            return 0.0
        self.spectrum, self.energy = row_squares(right), energy
        fidelity = _in_order(self.spectrum) / energy
        self.basis = self.full(right, key)
        self.wait = max(0, self.wait - 1)
        if self.lost:
            self.lost, self.judging, self.peak = False, True, 0.0
            return fidelity
        if self.judging:
            self.judging = False
            helped = self.before < self._reset * fidelity
            self.pause = _PAUSE if helped else min(2 * self.pause, _LONGEST_PAUSE)
            self.wait = 0 if helped else self.pause
        self.lost = self.wait == 0 and fidelity < self._reset * self.peak
        self.before = fidelity if self.lost else self.before
        self.peak = max(self.peak, fidelity)
        return fidelity

    def resize(self, dimension: int) -> None:
        """Between two steps: keeps the directions with the most energy, which come first, or adds some that are drawn when the next step begins.

        Fidelities in other dimensions say nothing about a jump: their maximum begins anew.
        """
        if dimension == self.dimension:
            return
        if self.basis is not None:
            rows = torch.zeros(dimension, self.columns)
            kept = min(dimension, self.dimension)
            rows[:kept] = self.basis[:kept]
            self.basis = rows
        self.dimension = dimension
        self.lost, self.judging, self.peak, self.before = self.basis is None, False, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Numbers and a tensor."""
        found: dict[str, Any] = {"rows": self.rows, "columns": self.columns, "dimension": self.dimension}
        found |= {name: getattr(self, name) for name in _NUMBERS}
        found["basis"] = None if self.basis is None else self.basis.clone()
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            StateError: it is of another shape or dimension.
        """
        found = (state["rows"], state["columns"], state["dimension"])
        if found != (self.rows, self.columns, self.dimension):
            raise StateError(
                f"the saved basis is of a matrix of {found[0]} by {found[1]} in {found[2]} dimensions, not of "
                f"{self.rows} by {self.columns} in {self.dimension}"
            )
        basis = state["basis"]
        self.basis = None if basis is None else basis.clone()
        for name in _NUMBERS:
            setattr(self, name, type(getattr(self, name))(state[name]))
