"""What the daemon's answers are to the clients outside it: results as frozen records, refusals as exceptions."""

from repowire.answers.asks import (
    Acked as Acked,
)
from repowire.answers.asks import (
    Ask as Ask,
)
from repowire.answers.asks import (
    AskManyAnswer as AskManyAnswer,
)
from repowire.answers.asks import (
    AskManyChild as AskManyChild,
)
from repowire.answers.asks import (
    AskManyResult as AskManyResult,
)
from repowire.answers.asks import (
    AskManyStatus as AskManyStatus,
)
from repowire.answers.asks import (
    AskPage as AskPage,
)
from repowire.answers.asks import (
    AskResult as AskResult,
)
from repowire.answers.asks import (
    PendingAsk as PendingAsk,
)
from repowire.answers.asks import (
    QueryResult as QueryResult,
)
from repowire.answers.asks import (
    WaitResult as WaitResult,
)
from repowire.answers.errors import (
    DaemonConnectionError as DaemonConnectionError,
)
from repowire.answers.errors import (
    DaemonError as DaemonError,
)
from repowire.answers.errors import (
    DaemonHTTPError as DaemonHTTPError,
)
from repowire.answers.errors import (
    DaemonTimeoutError as DaemonTimeoutError,
)
from repowire.answers.errors import (
    PeerDisconnectedError as PeerDisconnectedError,
)
from repowire.answers.errors import (
    RepowireError as RepowireError,
)
from repowire.answers.history import (
    Transcript as Transcript,
)
from repowire.answers.history import (
    Turn as Turn,
)
from repowire.answers.messages import (
    BroadcastResult as BroadcastResult,
)
from repowire.answers.messages import (
    Delivery as Delivery,
)
from repowire.answers.messages import (
    DeliveryPage as DeliveryPage,
)
from repowire.answers.messages import (
    DeliveryStanding as DeliveryStanding,
)
from repowire.answers.messages import (
    MessagePage as MessagePage,
)
from repowire.answers.messages import (
    NotifyResult as NotifyResult,
)
from repowire.answers.messages import (
    PickedUp as PickedUp,
)
from repowire.answers.messages import (
    PickUp as PickUp,
)
from repowire.answers.messages import (
    SaidMessage as SaidMessage,
)
from repowire.answers.messages import (
    Stage as Stage,
)
from repowire.answers.messages import (
    Trace as Trace,
)
from repowire.answers.messages import (
    TracedMessage as TracedMessage,
)
from repowire.answers.panes import (
    LinkedPane as LinkedPane,
)
from repowire.answers.panes import (
    OrphanPane as OrphanPane,
)
from repowire.answers.panes import (
    Rehooked as Rehooked,
)
from repowire.answers.peers import (
    ClientPeer as ClientPeer,
)
from repowire.answers.peers import (
    OrchestratorStatus as OrchestratorStatus,
)
from repowire.answers.peers import (
    RegisterPeerResult as RegisterPeerResult,
)
from repowire.answers.questions import (
    Blocked as Blocked,
)
from repowire.answers.questions import (
    Question as Question,
)
from repowire.answers.questions import (
    QuestionPage as QuestionPage,
)
from repowire.answers.questions import (
    Withdrawn as Withdrawn,
)
from repowire.answers.records import (
    Health as Health,
)
from repowire.answers.records import (
    Json as Json,
)
from repowire.answers.records import (
    MeshEvent as MeshEvent,
)
from repowire.answers.records import (
    all_made as all_made,
)
from repowire.answers.records import (
    given as given,
)
from repowire.answers.records import (
    made as made,
)
from repowire.answers.spawn import (
    KillPeerResult as KillPeerResult,
)
from repowire.answers.spawn import (
    RestartPeerResult as RestartPeerResult,
)
from repowire.answers.spawn import (
    SessionNotifyResult as SessionNotifyResult,
)
from repowire.answers.spawn import (
    SessionResumeResult as SessionResumeResult,
)
from repowire.answers.spawn import (
    SpawnConfigInfo as SpawnConfigInfo,
)
from repowire.answers.spawn import (
    SpawnResult as SpawnResult,
)
