"""The generation service: a durable queue of jobs, and the workers that run them.

`queue.py` has the queue, an SQLite file and the results beside it; `jobs.py` its records and errors; `database.py` the
tables; `worker.py` the process that generates the videos. Only a worker imports torch.
"""
