"""A careful hand-written FastAPI app: uvicorn with uvloop and httptools, and a thread pool of RUNNERS threads."""

import contextlib
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from model import RUNNERS, Model

model = Model()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = RUNNERS
    yield


async def body(request: Request) -> bytes:
    return await request.body()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(image: bytes = Depends(body)) -> JSONResponse:
    return JSONResponse(model.predict(image))


@app.get("/ready")
async def ready() -> dict[str, str]:
    return {"status": "ready"}
