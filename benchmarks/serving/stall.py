"""Connections that stall: half in the head, half in the body. What the server ends is opened again at once.

They are opened over a few seconds, so that the server's deadlines for them are spread, as those of strangers would be.

    python stall.py URL COUNT

prints a line when all are open, and holds them until it is ended.
"""

import asyncio
import sys
from urllib.parse import urlsplit

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
SPREAD_S = 5.0
BODY = HEAD + b"Content-Type: image/jpeg\r\nContent-Length: 35000\r\n\r\n\xff\xd8\xff"


async def hold(host: str, port: int, say: bytes, opened: asyncio.Semaphore, after_s: float) -> None:
    first = True
    await asyncio.sleep(after_s)
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(say)
            if first:
                opened.release()
                first = False
            await reader.read()
            writer.close()
        except OSError:
            await asyncio.sleep(0.1)


async def main(url: str, count: int) -> None:
    parts = urlsplit(url)
    opened = asyncio.Semaphore(0)
    tasks = [
        asyncio.create_task(
            hold(parts.hostname or "", parts.port or 80, (HEAD, BODY)[index % 2], opened, SPREAD_S * index / count)
        )
        for index in range(count)
    ]
    for _ in tasks:
        await opened.acquire()
    print("open", flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
