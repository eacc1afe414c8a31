#!/usr/bin/env python3
"""Fetch from Argyle's API the gigs that webhooks announce, and store them in the
table of gig.sql.  SIGTERM ends the program after the batches at hand.

  PG*              the database; PGOPTIONS may set search_path
  ARGYLE_URL       https://api.argyle.com
  ARGYLE_ID, ARGYLE_SECRET
  GIG_CONSUMER     the consumer, which must exist (fetcher)
  GIG_WORKERS      workers; more than the consumer has parts are idle (4)
  GIG_EVENTS       events of a batch at most (100)
  GIG_LEASE        how long a batch is leased, longer than it takes (5 minutes)
  GIG_CHANNEL      the channel of NOTIFY that tells of new events, if any
  GIG_POLL         seconds after which to look for work without that (2)
"""

import base64
import concurrent.futures
import http.client
import json
import os
import select
import signal
import sys
import threading
import urllib.parse

import psycopg
from psycopg.sql import SQL, Identifier

CONSUMER = os.environ.get('GIG_CONSUMER', 'fetcher')
EVENTS = int(os.environ.get('GIG_EVENTS', 100))
LEASE = os.environ.get('GIG_LEASE', '5 minutes')
CHANNEL = os.environ.get('GIG_CHANNEL')
POLL = float(os.environ.get('GIG_POLL', 2))
API = urllib.parse.urlsplit(os.environ.get('ARGYLE_URL', 'https://api.argyle.com'))
CREDENTIALS = '{ARGYLE_ID}:{ARGYLE_SECRET}'.format_map(os.environ)
HEADERS = {'Authorization': 'Basic ' + base64.b64encode(CREDENTIALS.encode()).decode()}

# What is fetched is kept in temporary tables until all of the batch is there,
# so that neither a long transaction nor memory is needed.
PREPARE_SESSION = """
    SET TimeZone = 'UTC';
    CREATE TEMP TABLE work (account_id uuid PRIMARY KEY, windows tstzmultirange, removed_gigs uuid[]);
    CREATE TEMP TABLE fetched (gig_id uuid PRIMARY KEY, account_id uuid, start_datetime timestamptz, gig jsonb)"""
READ_WORK = """
    WITH read AS MATERIALIZED (
        SELECT * FROM read_gig_work(%s, %s, %s)
    ), kept AS (
        INSERT INTO work SELECT account_id, windows, removed_gigs FROM read
    )
    SELECT batch, account_id,
        (SELECT json_agg(json_build_array(lower(w), upper(w))) FROM unnest(windows) AS w) AS windows
    FROM read"""
# Two pages have the same gig if its start changed in between: the latter counts.
KEEP_PAGE = """
    INSERT INTO fetched
    SELECT (g->>'id')::uuid, %s, (g->>'start_datetime')::timestamptz, g
    FROM jsonb_array_elements(%s::jsonb->'results') AS g
    ON CONFLICT (gig_id) DO UPDATE SET start_datetime = excluded.start_datetime, gig = excluded.gig"""
# A gig without a start is found by the window that is open at both ends.
DELETE_GIGS = """
    DELETE FROM gig USING work
    WHERE gig.account_id = work.account_id
        AND (work.windows @> gig.start_datetime OR work.windows = '{(,)}' OR gig.gig_id = ANY (work.removed_gigs))
        AND NOT EXISTS (SELECT FROM fetched WHERE fetched.gig_id = gig.gig_id)"""
STORE_GIGS = """
    INSERT INTO gig (gig_id, account_id, start_datetime, gig)
    SELECT gig_id, account_id, start_datetime, gig FROM fetched
    ON CONFLICT (gig_id) DO UPDATE
    SET account_id = excluded.account_id, start_datetime = excluded.start_datetime, gig = excluded.gig
    WHERE gig.gig <> excluded.gig"""

stopping = threading.Event()
wakeup_reader, wakeup_writer = os.pipe()
requests = concurrent.futures.ThreadPoolExecutor(20)    # accounts fetched at a time
local = threading.local()


class Refused(Exception):
    """An answer other than 200."""


def get(path):
    """Return the body of an answer, over a connection that is kept alive."""
    for is_fresh in (False, True):
        if is_fresh or getattr(local, 'connection', None) is None:
            kind = http.client.HTTPSConnection if API.scheme == 'https' else http.client.HTTPConnection
            local.connection = kind(API.netloc, timeout=30)
        try:
            local.connection.request('GET', path, headers=HEADERS)
            response = local.connection.getresponse()
            body = response.read().decode()
            break
        except (OSError, http.client.HTTPException):
            local.connection.close()
            if is_fresh:
                raise
    if response.status != 200:
        raise Refused(f'{response.status} {response.reason}', response.status, response.headers.get('Retry-After'))
    return body


def fetch_account(db, batch, account, windows):
    """Fetch the windows of an account.  If that fails, the account comes again later:
    after the seconds that a 429 answer names, or after a growing pause."""
    try:
        for window in windows:
            query = {'account': account, 'limit': 200}
            for name, value in zip(('from_start_datetime', 'to_start_datetime'), window):
                if value is not None:
                    query[name] = value
            path = '/v2/gigs?' + urllib.parse.urlencode(query)
            while path:
                body = get(path)
                following = json.loads(body)['next']
                db.execute(KEEP_PAGE, [account, body])
                path = following and '/v2/gigs?' + urllib.parse.urlsplit(following).query
    except Exception as error:
        status, after = error.args[1:] if isinstance(error, Refused) else (None, None)
        if status == 404:
            # The account is gone, and so are all of its gigs.
            db.execute('DELETE FROM fetched WHERE account_id = %s', [account])
            db.execute("UPDATE work SET windows = '{(,)}' WHERE account_id = %s", [account])
        else:
            after = int(after) if after and after.isdigit() else None
            db.execute('SELECT retry_gig_work(%s, %s, %s, make_interval(secs => %s))',
                       [batch, account, f'{type(error).__name__}: {error.args[0] if error.args else ""}', after])
            db.execute('DELETE FROM work WHERE account_id = %s', [account])


def work_once(db):
    """Work on one batch.  Returns whether there was one."""
    rows = db.execute(READ_WORK, [CONSUMER, EVENTS, LEASE]).fetchall()
    if not rows:
        return False
    fetches = [requests.submit(fetch_account, db, *row) for row in rows]
    concurrent.futures.wait(fetches)
    for fetch in fetches:
        fetch.result()
    with db.transaction():
        db.execute(DELETE_GIGS)
        db.execute(STORE_GIGS)
        db.execute('SELECT finish_gig_work(%s)', [rows[0][0]])
        db.execute('TRUNCATE work, fetched')
    return True


def work():
    """Work until SIGTERM.  Whatever the database refuses, a batch that somebody else
    has by now (40001) included, is rolled back with the session."""
    pause = 0.1
    while not stopping.is_set():
        try:
            with psycopg.connect(autocommit=True, fallback_application_name='gig consumer') as db:
                db.execute(PREPARE_SESSION)
                if CHANNEL:
                    db.execute(SQL('LISTEN {}').format(Identifier(CHANNEL)))
                # A wrong ARGYLE_URL must not look like accounts that are gone.
                get('/v2/accounts?limit=1')
                while not stopping.is_set():
                    if work_once(db):
                        pause = 0.1
                    else:
                        select.select([db, wakeup_reader], [], [], POLL)
        except Exception as error:
            print(f'consumer: {error}', file=sys.stderr, flush=True)
            stopping.wait(pause)
            pause = min(pause * 2, 30)


def stop(*_):
    stopping.set()
    os.write(wakeup_writer, b'.')


signal.signal(signal.SIGTERM, stop)
workers = [threading.Thread(target=work) for _ in range(int(os.environ.get('GIG_WORKERS', 4)))]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
