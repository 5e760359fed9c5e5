"""Who computes what, when: the database is the queue and the truth, an engine of workers is the muscle.

Nothing here is kept in memory that could not be read again: a dispatcher, a worker, the scheduler or the whole
machine may die at any moment and the work goes on from the rows.
"""
