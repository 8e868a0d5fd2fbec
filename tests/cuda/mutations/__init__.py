"""The mutants of tests/cuda/mutants.py, a file for each kernel."""

from mutations import _bitshift, _ectcq, _entropy, _entropy_encoder, _formats, _rotated, _shared, _topk, _uniform
from mutations._mutant import TESTS, Error, Mutant

__all__ = ["MUTANTS", "TESTS", "Error", "Mutant"]

MUTANTS: list[Mutant] = [
    *_shared.MUTANTS,
    *_uniform.MUTANTS,
    *_rotated.MUTANTS,
    *_formats.MUTANTS,
    *_bitshift.MUTANTS,
    *(Mutant(*mutant) for mutant in _entropy.MUTANTS),
    *(Mutant(*mutant) for mutant in _entropy_encoder.MUTANTS),
    *(Mutant(*mutant) for mutant in _ectcq.MUTANTS),
    *_topk.MUTANTS,
]
