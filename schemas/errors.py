"""The one base of all errors that are written for a person."""


class TokenometerError(Exception):
    """Something outside the program is not as it must be: a file, a device, a broker, a database, a setting.

    The message says what is wrong and what to do about it; the command line prints it in one line, and ends with
    `exit_status`. Errors of each room derive from this class. What does not derive from it is a fault of the program.
    """

    exit_status = 1
