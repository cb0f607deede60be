"""Runs over several devices: processes answer questions, each on its own cores or GPU, and one hands them out.

`desk` is what a worker does, and `run_desk` what one of a run does besides. `links` are how it is spoken to: `local`
starts processes here, `on_ray` actors on a Ray cluster. `staff` keeps workers going (`run_staff` those of a run),
`handout` has the work that is left, and `driver` writes the records of a run. Trainings have a crew of their own, see
`bench.train.crew`.
"""
