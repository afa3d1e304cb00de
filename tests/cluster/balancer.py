"""What a Service is to clients: connections go round several addresses, and to those that answer.

``python -m tests.cluster.balancer HOST:PORT TARGET...`` runs until it is killed.
"""

import asyncio
import itertools
import sys
from contextlib import suppress

Address = tuple[str, int]


async def serve(address: Address, targets: list[Address]) -> None:
    """Pass each connection on to the next target that takes it."""
    turns = itertools.cycle(range(len(targets)))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(turns)
        for target in (*targets[first:], *targets[:first]):
            with suppress(OSError):
                there, back = await asyncio.open_connection(*target)
                await asyncio.gather(_copy(reader, back), _copy(there, writer))
                return
        writer.close()

    server = await asyncio.start_server(handle, *address, backlog=512)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _parse(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(serve(_parse(sys.argv[1]), [_parse(text) for text in sys.argv[2:]]))
