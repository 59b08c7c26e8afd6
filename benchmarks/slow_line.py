"""A connection with a latency, as to a distant data centre."""

import asyncio
import threading


class SlowLine:
    """Passes bytes, and the end of either half, on to a local port after `delay` seconds.

    Its server runs in a thread of its own while the `with` block lasts.
    """

    def __init__(self, target_port: int, delay: float) -> None:
        self.port = 0
        self._target_port = target_port
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-line")
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "SlowLine":
        self._thread.start()
        starting = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self._connections.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        except OSError:
            pass  # one side has broken off: so does the line
        finally:
            writer.transport.abort()
            back.transport.abort()
            self._connections.discard(task)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        reading = asyncio.create_task(self._read(source, due))
        try:
            while True:
                when, data = await due.get()
                await asyncio.sleep(when - self._loop.time())
                if not data:
                    break
                sink.write(data)
                await sink.drain()
            sink.write_eof()
        finally:
            reading.cancel()

    async def _read(
        self, source: asyncio.StreamReader, due: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await source.read(2**16)
            except OSError:
                data = b""
            due.put_nowait((self._loop.time() + self._delay, data))
