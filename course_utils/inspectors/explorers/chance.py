"""Seeded random numbers that are the same in Python and in JavaScript (`uniforms` in explore.js).

Number i of a seed is a hash of (seed, i), so there is no state to carry along.
"""

import numpy as np

Array = np.ndarray


def uniforms(seed: int, count: int) -> Array:
    """(count,) float64 in (0, 1). The hash is Chris Wellons' "lowbias32" (public domain)."""
    i = np.arange(1, count + 1, dtype=np.uint64)
    mixed = i * 0x9E3779B9 + (np.uint64(seed) + np.uint64(1)) * np.uint64(0x85EBCA6B)
    x = mixed.astype(np.uint32)  # modulo 2^32
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    x ^= x >> 16
    return (x.astype(np.float64) + 0.5) / 2.0**32


def normals(seed: int, count: int) -> Array:
    """(count,) standard normal, float64 (Box and Muller 1958; one of each pair)."""
    u = uniforms(seed, 2 * count)
    return np.sqrt(-2 * np.log(u[::2])) * np.cos(2 * np.pi * u[1::2])
