"""Runs over several devices: processes answer questions, each on its own cores or GPU, and one hands them out.

`desk` is what a worker does. `links` are how it is spoken to: `local` starts processes here, `on_ray` actors on a Ray
cluster. `staff` keeps workers going, `handout` has the questions that are left, and `driver` writes the records.
"""
