"""What a person runs: the flows, and the `saerl` command."""
