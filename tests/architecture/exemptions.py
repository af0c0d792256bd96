"""Files that may be longer than the house allows, for a while: owner, reason, last day."""

from tests.architecture.house import Exemption

LONG_FILES: tuple[Exemption, ...] = ()
