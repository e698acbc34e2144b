"""One file a stage: a Prefect task that calls `saerl_core` and returns a small reference, never the data."""
