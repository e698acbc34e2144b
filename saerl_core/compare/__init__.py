"""Does it help? Arms (ways of curating) x seeds → accuracy by step, with intervals, and what each arm cost."""
