"""The lake's errors."""

from tokenometer.schemas.errors import TokenometerError


class LakeError(TokenometerError):
    """The lake cannot go on; the message says why and what to do."""


class CatalogAway(LakeError):
    """The catalog or the store of the table's files does not answer. Whether a commit has happened, the table says."""


class OtherTable(LakeError):
    """The table is not one that this program has made: another schema, another partitioning, or no state."""


class OtherTopics(LakeError):
    """The table has the rows of other topics, or of topics that have changed since."""


class Taken(LakeError):
    """Another writer has written for a partition that this one took for its own. Read the table's state again."""


class TooManyConflicts(LakeError):
    """Other commits came first again and again."""


class TooLarge(LakeError):
    """A number or a table is above a limit."""
