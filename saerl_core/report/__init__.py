"""A manifest or a training run, for people: one HTML page without a single outside resource, and a short markdown form.

Everything here is a pure function of its arguments: the same inputs give the same bytes.
"""
