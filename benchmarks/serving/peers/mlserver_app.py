"""MLServer: a custom runtime with a handler for the raw body, in the server's process with a pool of RUNNERS threads.

Its own protocol's JSON with base64 and its pool of processes are both slower than this.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.handlers import custom_handler
from model import RUNNERS, Model
from starlette.requests import Request
from starlette.responses import JSONResponse


class Photos(MLModel):
    async def load(self) -> bool:
        self.model = Model()
        self.pool = ThreadPoolExecutor(RUNNERS)
        return True

    @custom_handler(rest_path="/predict")
    async def image(self, request: Request) -> JSONResponse:
        loop = asyncio.get_running_loop()
        return JSONResponse(await loop.run_in_executor(self.pool, self.model.predict, await request.body()))
