"""What the daemon's answers are to `RepowireClient`: JSON objects, with the fields that the document gives them.

For type checkers alone; nothing imports this when it runs. Moments are ISO-8601 in UTC, durations seconds.
"""

from repowire.shapes.asks import (
    Acked as Acked,
)
from repowire.shapes.asks import (
    Ask as Ask,
)
from repowire.shapes.asks import (
    Asked as Asked,
)
from repowire.shapes.asks import (
    AskedMany as AskedMany,
)
from repowire.shapes.asks import (
    AskManyAnswer as AskManyAnswer,
)
from repowire.shapes.asks import (
    AskManyChild as AskManyChild,
)
from repowire.shapes.asks import (
    AskPage as AskPage,
)
from repowire.shapes.asks import (
    Counts as Counts,
)
from repowire.shapes.asks import (
    OpenAsk as OpenAsk,
)
from repowire.shapes.asks import (
    Queried as Queried,
)
from repowire.shapes.asks import (
    Rollup as Rollup,
)
from repowire.shapes.asks import (
    Waited as Waited,
)
from repowire.shapes.doctor import (
    Code as Code,
)
from repowire.shapes.doctor import (
    Contradiction as Contradiction,
)
from repowire.shapes.doctor import (
    HeldDelivery as HeldDelivery,
)
from repowire.shapes.doctor import (
    HeldPeer as HeldPeer,
)
from repowire.shapes.doctor import (
    Hold as Hold,
)
from repowire.shapes.doctor import (
    HostCheck as HostCheck,
)
from repowire.shapes.doctor import (
    HostReport as HostReport,
)
from repowire.shapes.doctor import (
    PaneEvidence as PaneEvidence,
)
from repowire.shapes.doctor import (
    PeerReport as PeerReport,
)
from repowire.shapes.doctor import (
    TroubledPeer as TroubledPeer,
)
from repowire.shapes.history import (
    History as History,
)
from repowire.shapes.history import (
    Match as Match,
)
from repowire.shapes.history import (
    Timeline as Timeline,
)
from repowire.shapes.history import (
    TimelineItem as TimelineItem,
)
from repowire.shapes.history import (
    TimelineMatch as TimelineMatch,
)
from repowire.shapes.history import (
    TimelineSearch as TimelineSearch,
)
from repowire.shapes.history import (
    Transcript as Transcript,
)
from repowire.shapes.history import (
    Turn as Turn,
)
from repowire.shapes.host import (
    Channel as Channel,
)
from repowire.shapes.host import (
    Health as Health,
)
from repowire.shapes.host import (
    Ok as Ok,
)
from repowire.shapes.host import (
    Rotated as Rotated,
)
from repowire.shapes.host import (
    Stopping as Stopping,
)
from repowire.shapes.mcp_servers import (
    McpChanged as McpChanged,
)
from repowire.shapes.mcp_servers import (
    McpScope as McpScope,
)
from repowire.shapes.mcp_servers import (
    McpServer as McpServer,
)
from repowire.shapes.mcp_servers import (
    McpServers as McpServers,
)
from repowire.shapes.messages import (
    Confirmed as Confirmed,
)
from repowire.shapes.messages import (
    Copy as Copy,
)
from repowire.shapes.messages import (
    Delivery as Delivery,
)
from repowire.shapes.messages import (
    DeliveryPage as DeliveryPage,
)
from repowire.shapes.messages import (
    Failed as Failed,
)
from repowire.shapes.messages import (
    Message as Message,
)
from repowire.shapes.messages import (
    MessagePage as MessagePage,
)
from repowire.shapes.messages import (
    Notified as Notified,
)
from repowire.shapes.messages import (
    PickedUp as PickedUp,
)
from repowire.shapes.messages import (
    PickUp as PickUp,
)
from repowire.shapes.messages import (
    Spread as Spread,
)
from repowire.shapes.messages import (
    Stage as Stage,
)
from repowire.shapes.messages import (
    Standing as Standing,
)
from repowire.shapes.messages import (
    Trace as Trace,
)
from repowire.shapes.messages import (
    TracedMessage as TracedMessage,
)
from repowire.shapes.panes import (
    LinkedPane as LinkedPane,
)
from repowire.shapes.panes import (
    OrphanPane as OrphanPane,
)
from repowire.shapes.panes import (
    OrphanPanes as OrphanPanes,
)
from repowire.shapes.panes import (
    Rehooked as Rehooked,
)
from repowire.shapes.peers import (
    BirthCertificate as BirthCertificate,
)
from repowire.shapes.peers import (
    Caller as Caller,
)
from repowire.shapes.peers import (
    Orchestrator as Orchestrator,
)
from repowire.shapes.peers import (
    Peer as Peer,
)
from repowire.shapes.peers import (
    PreviousHolder as PreviousHolder,
)
from repowire.shapes.peers import (
    Pruned as Pruned,
)
from repowire.shapes.peers import (
    PrunedPeer as PrunedPeer,
)
from repowire.shapes.peers import (
    Registered as Registered,
)
from repowire.shapes.peers import (
    RoleClaimed as RoleClaimed,
)
from repowire.shapes.peers import (
    Validated as Validated,
)
from repowire.shapes.peers import (
    WentOffline as WentOffline,
)
from repowire.shapes.questions import (
    Blocked as Blocked,
)
from repowire.shapes.questions import (
    Decision as Decision,
)
from repowire.shapes.questions import (
    Option as Option,
)
from repowire.shapes.questions import (
    Outcome as Outcome,
)
from repowire.shapes.questions import (
    Question as Question,
)
from repowire.shapes.questions import (
    QuestionPage as QuestionPage,
)
from repowire.shapes.questions import (
    Withdrawn as Withdrawn,
)
from repowire.shapes.spawn import (
    Killed as Killed,
)
from repowire.shapes.spawn import (
    Restarted as Restarted,
)
from repowire.shapes.spawn import (
    ResumeCapability as ResumeCapability,
)
from repowire.shapes.spawn import (
    SessionNotified as SessionNotified,
)
from repowire.shapes.spawn import (
    SessionResumed as SessionResumed,
)
from repowire.shapes.spawn import (
    SpawnConfig as SpawnConfig,
)
from repowire.shapes.spawn import (
    Spawned as Spawned,
)
from repowire.shapes.spawn import (
    Switched as Switched,
)
from repowire.shapes.words import (
    Backend as Backend,
)
from repowire.shapes.words import (
    Json as Json,
)
from repowire.shapes.words import (
    Role as Role,
)
from repowire.shapes.words import (
    SeemingBackend as SeemingBackend,
)
from repowire.shapes.words import (
    State as State,
)
from repowire.shapes.words import (
    TurnState as TurnState,
)
