"""The errors a user can cause and can mend: a message says what was seen, where, and what to do."""


class CourseError(Exception):
    """Base of all errors meant for the user; the command line prints them without a traceback."""


class DataError(CourseError):
    """A dataset or file does not have the promised shape; names the source, row, column and fix."""


class RunError(CourseError):
    """A run directory cannot be used: other format version, missing pieces, not a run at all."""


class CheckpointError(RunError):
    """A checkpoint is incomplete or does not match its hashes."""


class WeightsError(CourseError):
    """A weight file is missing or corrupted."""


class TierError(CourseError):
    """An unknown tier, or one that this machine cannot run."""
