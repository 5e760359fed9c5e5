"""Searches for ranges, compiled. Needs numba; `workers.quant.acceleration` decides when it is used.

Of least error: the points tried are those of `workers.quant.clipping_mse`, which is the reference, but for ones that cannot win: rows
whose error is 0 are done, and a share that was cut off at 1 is not tried again.
"""
