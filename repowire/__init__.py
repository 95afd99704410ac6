"""repowire: a local daemon that gives every coding agent on a machine a name and a mailbox."""

__version__ = "0.1.0"
