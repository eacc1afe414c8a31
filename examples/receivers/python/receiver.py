# Receives Argyle's webhooks with Starlette and psycopg 3.
#
#   pip install starlette uvicorn psycopg[binary] psycopg_pool
#   PGDATABASE=gigs PGUSER=receiver PORT=8080 python3 receiver.py

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import psycopg
import uvicorn
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMIT = 8 * 1024 * 1024
INGEST = """SELECT outcome::text, event_id, sqlstate, message
    FROM try_ingest_gig_event(%s::bytea, %s::text)"""
STATUS = {"28000": 401, "54000": 413}
# Serialization failure, deadlock, lost connection (which may have no SQLSTATE), shutdown.
REPEAT = ("40001", "40P01", "08", "57P")

# libpq takes the PG* variables.
pool = AsyncConnectionPool(os.environ.get("DATABASE_URL", ""), open=False, min_size=1, max_size=10,
                           timeout=3, reconnect_timeout=3)


# The connection commits when its block ends.  To repeat it is safe: what was
# committed is a duplicate then.
async def ingest(body, signature):
    for attempt in range(1, 5):
        try:
            async with pool.connection() as connection:
                cursor = await connection.execute(INGEST, (body, signature))
                row = await cursor.fetchone()
            return row
        except psycopg.OperationalError as error:
            repeat = (error.sqlstate or "08").startswith(REPEAT) and not isinstance(error, PoolTimeout)
            if attempt == 4 or not repeat:
                raise
            await asyncio.sleep(0.05 * attempt)


# The signature covers the bytes of the body, so nothing may parse them.
async def receive(request):
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LIMIT:
            return JSONResponse({"message": "body is too large"}, 413)
    try:
        outcome, event_id, sqlstate, message = await ingest(
            bytes(body), request.headers.get("x-argyle-signature"))
    except psycopg.Error as error:
        print("cannot ingest webhook:", type(error).__name__, error.sqlstate,
              error.diag.message_primary, file=sys.stderr)
        return JSONResponse({"message": "try again later"}, 503, {"Retry-After": "5"})
    if outcome == "rejected":
        return JSONResponse({"outcome": outcome, "message": message}, STATUS.get(sqlstate, 400))
    return JSONResponse({"outcome": outcome, "event_id": event_id})


@asynccontextmanager
async def lifespan(app):
    await pool.open(wait=False)  # the database may be down
    yield
    await pool.close()


# Starlette answers 404 and 405.
app = Starlette(routes=[Route("/webhooks/argyle", receive, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"),
                port=int(os.environ.get("PORT", "8080")), access_log=False)
