"""What goes wrong for a client: no daemon, no time, or a refusal."""

from repowire.errors import Refusal


class RepowireError(Exception):
    """Whatever this client raises."""


class DaemonError(RepowireError):
    """A call to the daemon failed."""


class DaemonConnectionError(DaemonError, ConnectionError):
    """No daemon answers, or it hung up."""


class DaemonTimeoutError(DaemonError, TimeoutError):
    """The daemon took too long."""


class DaemonHTTPError(DaemonError, Refusal):
    """The daemon refused: status, error, hint and facts as in `Refusal`."""


class PeerDisconnectedError(RepowireError):
    """A connected peer was ended by the daemon; connecting again would end the same way."""

    def __init__(self, peer_name: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{peer_name}: {reason or 'disconnected'}")
        self.peer_name, self.code, self.reason = peer_name, code, reason
