//! From a scenario to events: the pure planner, the job spec, and the execution of one job.
