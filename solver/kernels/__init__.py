"""The knapsack's steps, compiled. Needs numba; `solver.acceleration` decides when it is used.

Every function here has its NumPy twin in `solver.relaxation`, `solver.core` and `solver.search`, which say what is done and
why; here is only how to do it without temporary arrays. All functions release the interpreter lock. Signatures are given,
so that everything is compiled when these modules are imported, and nothing later.
"""
