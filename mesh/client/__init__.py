"""For tenants: a client that asks where its key is served *before* it shows a prompt, and shows it nowhere else.

    from mesh.client import openai_client
    client = openai_client(key, "https://vn-1.mesh.example")

An ordinary SDK sends its prompt to whatever host it was pointed at, and to wherever that host redirects it. With this
package the first thing that leaves the machine is a question without content, and a prompt goes only to a region that
the answer names. The mesh decides again for itself: this protects against a mistake, not against a mesh that lies.
"""

from mesh.client.http import AsyncPinnedTransport, PinnedTransport, async_openai_client, base_url, openai_client
from mesh.client.routes import DiscoveryError, Place, Route, WrongRegionError
from mesh.client.rpc import aio_channel, channel

__all__ = (
    "AsyncPinnedTransport",
    "DiscoveryError",
    "PinnedTransport",
    "Place",
    "Route",
    "WrongRegionError",
    "aio_channel",
    "async_openai_client",
    "base_url",
    "channel",
    "openai_client",
)
