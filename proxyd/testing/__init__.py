"""Public doubles for people who embed proxyd or test against it: a whole proxy in memory, and its pieces."""

from proxyd.testing.faults import Faults
from proxyd.testing.lab import Lab
from proxyd.testing.origins import Dial, Origin, OriginPeer, Reach, ScriptedDialer
from proxyd.testing.peers import Ending, Peer
from proxyd.testing.reactor import LabReactor, MemoryPort
from proxyd.testing.records import RecordList
from proxyd.testing.resolvers import RebindingResolver, StaticResolver
from proxyd.testing.transport import MemoryTransport, joined

__all__ = [
    "Dial",
    "Ending",
    "Faults",
    "Lab",
    "LabReactor",
    "MemoryPort",
    "MemoryTransport",
    "Origin",
    "OriginPeer",
    "Peer",
    "RebindingResolver",
    "RecordList",
    "Reach",
    "ScriptedDialer",
    "StaticResolver",
    "joined",
]
