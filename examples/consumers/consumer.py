#!/usr/bin/env python3
"""Fetch from Argyle's API the gigs that webhooks announce, and store them in the
table of gig.sql.  SIGTERM ends the program after the batches at hand.

  PG*              the database; PGOPTIONS may set search_path
  ARGYLE_ID, ARGYLE_SECRET, ARGYLE_URL (https://api.argyle.com)
  GIG_CONSUMER     the consumer, which must exist (fetcher)
  GIG_WORKERS      workers; more than the consumer has parts are idle (4)
  GIG_EVENTS, GIG_LEASE    of a batch: events at most, and how long it may take (100, 5 minutes)
  GIG_CHANNEL      the channel of NOTIFY that tells of new events, if any
  GIG_POLL         seconds after which to look for work without that (2)
"""

import base64
import concurrent.futures
import http.client
import os
import select
import signal
import sys
import threading
import urllib.error
import urllib.parse

import psycopg

env = {'ARGYLE_URL': 'https://api.argyle.com', 'GIG_CONSUMER': 'fetcher', 'GIG_WORKERS': '4', 'GIG_EVENTS': '100',
       'GIG_LEASE': '5 minutes', 'GIG_CHANNEL': '', 'GIG_POLL': '2', **os.environ}
url = urllib.parse.urlsplit(env['ARGYLE_URL'])
authorization = 'Basic ' + base64.b64encode('{ARGYLE_ID}:{ARGYLE_SECRET}'.format_map(env).encode()).decode()

# Fetched gigs are kept in temporary tables until all of a batch is there, so that
# neither memory nor a long transaction is needed.
PREPARE_SESSION = """
    SET TimeZone = 'UTC';
    CREATE TEMP TABLE work (account_id uuid PRIMARY KEY, windows tstzmultirange, removed_gigs uuid[]);
    CREATE TEMP TABLE fetched (gig_id uuid PRIMARY KEY, account_id uuid, start_datetime timestamptz, gig jsonb)"""
READ_WORK = """
    WITH read AS MATERIALIZED (SELECT * FROM read_gig_work(%s, %s, %s)),
        kept AS (INSERT INTO work SELECT account_id, windows, removed_gigs FROM read)
    SELECT batch, account_id, (SELECT json_agg(json_build_array(lower(w), upper(w))) FROM unnest(windows) AS w)
    FROM read"""
# A gig whose start changes meanwhile can be on two pages: the later one counts.  An
# answer without results is an error, so that it does not look like no gigs.
KEEP_PAGE = """
    WITH page AS MATERIALIZED (SELECT %(page)s::jsonb AS page), kept AS (
        INSERT INTO fetched
        SELECT (g->>'id')::uuid, %(account)s, (g->>'start_datetime')::timestamptz, g
        FROM page, jsonb_path_query(page, 'strict $.results[*]') AS g
        ON CONFLICT (gig_id) DO UPDATE SET start_datetime = excluded.start_datetime, gig = excluded.gig
    )
    SELECT page->>'next' FROM page"""
# Without ANALYZE, all gigs would be read.  The window '{(,)}' has gigs without a start, too.
FINISH_WORK = """
    BEGIN;
    ANALYZE work;
    DELETE FROM gig USING work
    WHERE gig.account_id = work.account_id
        AND (work.windows @> gig.start_datetime OR work.windows = '{(,)}' OR gig.gig_id = ANY (work.removed_gigs))
        AND NOT EXISTS (SELECT FROM fetched WHERE fetched.gig_id = gig.gig_id);
    INSERT INTO gig (gig_id, account_id, start_datetime, gig)
    SELECT gig_id, account_id, start_datetime, gig FROM fetched
    ON CONFLICT (gig_id) DO UPDATE SET start_datetime = excluded.start_datetime, gig = excluded.gig
    WHERE gig.gig <> excluded.gig;
    SELECT finish_gig_work(%d);
    TRUNCATE work, fetched;
    COMMIT"""

alarm_reader, alarm_writer = os.pipe()  # readable after SIGTERM
fetchers = concurrent.futures.ThreadPoolExecutor(20)
local = threading.local()


def is_stopping(seconds=0, *wakers):
    """Wait for SIGTERM, one of the wakers, or the end of the time.  Return whether it was SIGTERM."""
    return alarm_reader in select.select([alarm_reader, *wakers], [], [], seconds)[0]


def get(path):
    """Return the body of an answer.  The API may have closed a connection that was kept alive."""
    for is_new in (not hasattr(local, 'connection'), True):
        if is_new:
            kind = http.client.HTTPSConnection if url.scheme == 'https' else http.client.HTTPConnection
            local.connection = kind(url.netloc, timeout=30)
        try:
            local.connection.request('GET', path, headers={'Authorization': authorization})
            response = local.connection.getresponse()
            body = response.read().decode()
            break
        except (OSError, http.client.HTTPException):
            local.connection.close()
            if is_new:
                raise
    if response.status != 200:
        raise urllib.error.HTTPError(path, response.status, response.reason, response.headers, None)
    return body


def fetch_account(db, batch, account, windows):
    """Fetch the windows of an account.  If that fails, the account comes again later:
    after the seconds that a 429 answer names, or after a growing pause."""
    try:
        for first, last in windows:
            query = {'account': account, 'from_start_datetime': first, 'to_start_datetime': last, 'limit': 200}
            path = '/v2/gigs?' + urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
            while path:
                following, = db.execute(KEEP_PAGE, {'account': account, 'page': get(path)}).fetchone()
                path = following and '/v2/gigs?' + urllib.parse.urlsplit(following).query
    except Exception as error:
        if getattr(error, 'code', None) == 404:
            # The account is gone, and so are all of its gigs.
            db.execute('DELETE FROM fetched WHERE account_id = %s', [account])
            db.execute("UPDATE work SET windows = '{(,)}' WHERE account_id = %s", [account])
        else:
            after = error.headers.get('Retry-After', '') if isinstance(error, urllib.error.HTTPError) else ''
            db.execute('SELECT retry_gig_work(%s, %s, %s, make_interval(secs => %s))',
                       [batch, account, str(error), int(after) if after.isdigit() else None])
            db.execute('DELETE FROM work WHERE account_id = %s', [account])


def work():
    """Work until SIGTERM.  What the database refuses, such as an expired batch, is rolled back with the session."""
    pause = 0.1
    while not is_stopping():
        try:
            with psycopg.connect(autocommit=True, connect_timeout=10) as db:
                db.execute(PREPARE_SESSION)
                if env['GIG_CHANNEL']:
                    db.execute(f'LISTEN "{env["GIG_CHANNEL"]}"')
                # A wrong ARGYLE_URL must not look like accounts that are gone.
                get('/v2/accounts?limit=1')
                while not is_stopping():
                    rows = db.execute(READ_WORK, [env['GIG_CONSUMER'], env['GIG_EVENTS'], env['GIG_LEASE']]).fetchall()
                    if rows:
                        list(fetchers.map(lambda row: fetch_account(db, *row), rows))
                        db.execute(FINISH_WORK % rows[0][0])
                        pause = 0.1
                    else:
                        is_stopping(float(env['GIG_POLL']), db)
        except Exception as error:
            print(f'consumer: {error}', file=sys.stderr, flush=True)
            is_stopping(pause)
            pause = min(pause * 2, 30)


signal.signal(signal.SIGTERM, lambda *_: os.write(alarm_writer, b'.'))
with concurrent.futures.ThreadPoolExecutor(int(env['GIG_WORKERS'])) as workers:
    for _ in range(int(env['GIG_WORKERS'])):
        workers.submit(work)
