# Receives Argyle's webhooks with Starlette and psycopg 3.
#
#   PGDATABASE=gigs PGUSER=receiver uvicorn --port 8080 receiver:app

import sys
from contextlib import asynccontextmanager

import psycopg
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMIT = 8 * 1024 * 1024
INGEST = """SELECT outcome::text, event_id, sqlstate, message
    FROM try_ingest_gig_event(%s::bytea, %s::text)"""
STATUS = {"28000": 401, "54000": 413}

pool = AsyncConnectionPool(open=False, max_size=10, timeout=1, reconnect_timeout=3)


# A connection commits when its block ends.  To repeat it is safe: what was committed is
# a duplicate then.
async def ingest(body, signature):
    for attempt in range(1, 5):
        try:
            async with pool.connection() as connection:
                cursor = await connection.execute(INGEST, (body, signature))
                return await cursor.fetchone()
        except psycopg.OperationalError:  # serialization, deadlock, lost connection
            if attempt == 4:
                raise


async def receive(request):
    body = bytearray()  # is not parsed, because the signature covers the bytes
    async for chunk in request.stream():
        body += chunk
        if len(body) > LIMIT:
            return JSONResponse({"message": "body is too large"}, 413)
    try:
        row = await ingest(body, request.headers.get("x-argyle-signature"))
    except psycopg.Error as error:
        print("cannot ingest webhook:", error.sqlstate or error, file=sys.stderr)
        return JSONResponse({"message": "try again later"}, 503, {"Retry-After": "5"})
    outcome, event_id, sqlstate, message = row
    if outcome == "rejected":
        answer = {"outcome": outcome, "message": message}
        return JSONResponse(answer, STATUS.get(sqlstate, 400))
    return JSONResponse({"outcome": outcome, "event_id": event_id})


@asynccontextmanager
async def lifespan(app):
    async with pool:  # does not wait for the database
        yield


route = Route("/webhooks/argyle", receive, methods=["POST"])
app = Starlette(routes=[route], lifespan=lifespan)
