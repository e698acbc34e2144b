"""The error model: what a user did is told in one line; what we did wrong is a traceback.

Every error that input can cause (a file, a row, a field, an SAE that does not fit) is a `SaerlError`, raised at
the boundary where the input is read. The command line prints its message and exits with code 2. Anything else
that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class SaerlError(Exception):
    """Base of all errors that a user can mend. The message says what is wrong, where, and what to do."""


class ConfigError(SaerlError):
    """The configuration is wrong, or two of its fields contradict each other."""


class DataError(SaerlError):
    """A data set cannot be read or breaks the prompt contract. Names the file and, where known, the row."""


class ModelError(SaerlError):
    """A model, tokenizer or SAE is missing, unreadable, or does not fit its counterpart."""


class ArtifactError(SaerlError):
    """A stored artifact (features, manifest, checkpoint) is incomplete, corrupt, or belongs to something else."""


class ServerError(SaerlError):
    """A server, Prefect's or one that gives answers, is not there, or refuses what it is asked."""


class TrainError(SaerlError):
    """The training job could not be built, did not pass verl's own checks, or died."""
