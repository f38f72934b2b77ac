"""HTTP/1.1 for doors and hops: one small server and one small client on asyncio transports."""
