"""Before a job burns hours: how much memory each of its buckets takes on each process, whether there is so much, what would
make it fit, and what the job will cost.
"""
