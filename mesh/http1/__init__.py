"""HTTP/1.1 for doors and hops: one small server and one small client on asyncio transports."""

from mesh.http1.client import ConnectionFailedError, Response
from mesh.http1.connection import Fault, Handler
from mesh.http1.limits import Limits
from mesh.http1.pool import Pool, StaleConnectionError, TooManyConnectionsError
from mesh.http1.request import Peer, Request
from mesh.http1.server import Server, listen

__all__ = [
    "ConnectionFailedError",
    "Fault",
    "Handler",
    "Limits",
    "Peer",
    "Pool",
    "Request",
    "Response",
    "Server",
    "StaleConnectionError",
    "TooManyConnectionsError",
    "listen",
]
