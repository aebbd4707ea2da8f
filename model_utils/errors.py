# SPDX-License-Identifier: Apache-2.0
"""What the user can put right.

An exception with an `exit_status` is meant for the user: the entry scripts print its message without a traceback
and exit with that status. `src` has its own such exceptions, because it imports nothing from here.
"""


class ConfigError(ValueError):
    """A file, key, value or flag that is wrong: the message says which, where, and what is allowed."""

    exit_status = 2


class DeviceError(RuntimeError):
    """A device or a job that was asked for and is not there."""

    exit_status = 2


class PlatformError(RuntimeError):
    """The cloud platform has not what was asked of it."""

    exit_status = 2
