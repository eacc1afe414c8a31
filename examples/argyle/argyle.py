#!/usr/bin/env python3
"""A stand-in for Argyle, for tests and for trying things out.

It keeps accounts and their gigs in memory, changes them, serves them as Argyle's
API does, and posts signed gigs webhooks.  Its address is the first line that it
prints.  SIGTERM ends it.

API, with HTTP Basic authentication:

  GET /v2/gigs?account=&from_start_datetime=&to_start_datetime=&limit=&cursor=
  GET /v2/gigs/ID
  GET /v2/accounts?limit=&cursor=
  GET /v2/accounts/ID

Both times are inclusive.  Gigs are ordered by start and id, accounts by id.  A
cursor holds the place after a row, so that a gig that does not change while pages
are read is neither missed nor returned twice.  An account that is gone is 404.

Webhooks: while an account is first synced, each subscription gets
gigs.partially_synced at its number of days, unless that is all there is, and
gigs.fully_synced.  After that, a change is gigs.added, gigs.updated or
gigs.removed.  Their times are the earliest and the latest start of the gigs
concerned.  Where a start moves, the old one and the new one both count.  An
account that goes has a last gigs.updated, sent when the API has it no more.

Control, for clients on the same machine:

  GET  /control/settings       all settings
  POST /control/settings       changes some: {"lost": 0.1, "rate": 50}
  POST /control/stop           stops changing; the first syncs under way end at once
  GET  /control/settled        {"settled": true, ...}: nothing changes, and each
                               webhook is acknowledged or lost; with counts
  POST /control/change         makes a change: {"kind": "added" | "updated" | "moved" |
                               "removed" | "gone" | "connected", "account": ID, "gigs": N}.
                               Returns account, gigs, and webhooks as body and signature.
  GET  /control/gigs           all gigs, as JSON, one a line, ordered by id
  GET  /control/delivered?after=N
                               the acknowledged webhooks after the first N, in order
  POST /control/take           without --webhook-url: hands out the webhooks instead
                               of posting them, and counts them as acknowledged
"""

import argparse
import asyncio
import base64
import bisect
import collections
import contextlib
import datetime
import hmac
import json
import random
import signal
import urllib.parse

from accounts import DAY, EPOCH, Account, iso, now
from webhooks import Webhooks

SETTINGS = {
    'rate': (0.0, 'changes a second'),
    'gone': (0.0, 'share of the changes that delete an account'),
    'sync_seconds': (0.0, 'seconds that the first sync of the accounts takes'),
    'lost': (0.0, 'share of the webhooks that are lost'),
    'doubled': (0.0, 'share of the webhooks that are sent twice'),
    'late': (0.0, 'share of the webhooks that are late, and so out of order'),
    'late_by': (2.0, 'seconds that these are late at most'),
    'timeout': (5.0, 'seconds to wait for the answer to a webhook'),
    'pause': (0.1, 'seconds before the first redelivery; they double each time'),
    'max_pause': (2.0, 'seconds between redeliveries at most'),
    'attempts': (0, 'deliveries of a webhook at most, after which it is lost; 0: no limit'),
    'limited': (0.0, 'share of the requests that are answered 429'),
    'retry_after': (1, 'seconds in the header Retry-After of these'),
    'broken': (0.0, 'share of the requests that are answered 500'),
    'slow': (0.0, 'share of the requests that are answered slowly'),
    'slow_by': (2.0, 'seconds that these answers take'),
}
REASONS = {200: 'OK', 400: 'Bad Request', 401: 'Unauthorized', 403: 'Forbidden', 404: 'Not Found',
           405: 'Method Not Allowed', 429: 'Too Many Requests', 500: 'Internal Server Error'}


class HTTPError(Exception):
    """An answer other than 200: its status, a message and further headers."""

    def __init__(self, status, message, headers=''):
        super().__init__(message)
        self.status = status
        self.headers = headers


def parse_time(text):
    try:
        # A plus sign that is not escaped arrives as a space.
        value = datetime.datetime.fromisoformat(text.replace('Z', '+00:00').replace(' ', '+'))
        return (value.replace(tzinfo=value.tzinfo or EPOCH.tzinfo) - EPOCH) // datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise HTTPError(400, f'invalid timestamp "{text}"')


class Argyle:
    """The accounts, how they change, and what is answered to requests."""

    def __init__(self, options):
        self.options = options
        self.settings = {name: getattr(options, name) for name in SETTINGS}
        self.dice = random.Random(options.seed)
        self.webhooks = Webhooks(options, self.settings, self.dice)
        self.subscriptions = []
        for text in options.subscription or ['payroll']:
            name, _, days = text.partition(':')
            self.subscriptions.append((name, int(days or 30)))
        self.accounts = {}
        self.account_keys = []
        self.syncing = {}
        self.stopped = False
        self.changes = 0
        self.answers = collections.Counter()
        self.authorization = 'Basic ' + base64.b64encode(f'{options.user}:{options.password}'.encode()).decode()
        for _ in range(options.accounts):
            self.connect(options.gigs)

    # Changes -----------------------------------------------------------------

    def send(self, account, event, data, days=None):
        """Send a webhook to all subscriptions, or to those with a number of days."""
        account.updated = now()
        data = {'account': account.id, 'user': account.user, **account.available(), **data}
        return [self.webhooks.send(event, name, data) for name, n in self.subscriptions if days in (None, n)]

    def connect(self, n_gigs):
        account = Account(self.dice, n_gigs)
        self.accounts[account.id] = account
        bisect.insort(self.account_keys, (account.id,))
        steps = self.sync(account)
        self.syncing[account.id] = steps
        if self.settings['sync_seconds'] > 0 and not self.stopped:
            asyncio.get_running_loop().create_task(self.sync_slowly(steps))
            return account, []
        return account, [webhook for step in steps for webhook in step]

    def sync(self, account):
        """Sync an account in steps, each of which yields its webhooks."""
        for days in sorted({days for _, days in self.subscriptions}):
            account.retrieve(days)
            if account.unretrieved:
                yield self.send(account, 'gigs.partially_synced', {'days_synced': days}, days)
        account.retrieve()
        account.synced = True
        del self.syncing[account.id]
        yield self.send(account, 'gigs.fully_synced', {})

    async def sync_slowly(self, steps):
        pause = self.settings['sync_seconds'] / (len(self.subscriptions) + 2)
        await asyncio.sleep(self.dice.random() * 2 * pause)
        for _ in steps:
            await asyncio.sleep(self.dice.random() * pause)

    def change(self, kind=None, account=None, n_gigs=None):
        """Change an account.  Returns the account, the ids of the gigs, and the webhooks."""
        self.changes += 1
        if kind is None and self.dice.random() < self.settings['gone']:
            kind = 'gone'
        kind = kind or self.dice.choices(('added', 'updated', 'moved', 'removed'), (6, 7, 3, 4))[0]
        if kind == 'connected':
            account, webhooks = self.connect(self.options.gigs if n_gigs is None else n_gigs)
            return account.id, list(account.gigs), webhooks
        account = self.pick_account(account)
        n = min(len(account.gigs), n_gigs or self.dice.randint(1, 4))
        if kind == 'added' or n == 0:
            event = 'added'
            gigs = [account.new_gig(self.dice) for _ in range(n_gigs or self.dice.randint(1, 4))]
            starts = []
        else:
            event = 'removed' if kind == 'removed' else 'updated'
            gigs = [account.gigs[account.order[i][1]] for i in self.dice.sample(range(len(account.order)), n)]
            starts = [gig.start for gig in gigs]
        for gig in gigs:
            if event != 'added':
                account.remove(gig)
            if event == 'updated':
                self.update(gig, moves=kind == 'moved')
            if event != 'removed':
                account.add(gig)
        webhooks = self.send_change(account, event, gigs, starts)
        if kind == 'gone':
            del self.accounts[account.id]
            self.account_keys.remove((account.id,))
        return account.id, [gig.id for gig in gigs], webhooks

    def pick_account(self, account_id):
        if account_id is not None:
            if account_id not in self.accounts:
                raise HTTPError(404, 'there is no such account')
            return self.accounts[account_id]
        for _ in range(100 if self.accounts else 0):
            account = self.accounts[self.dice.choice(self.account_keys)[0]]
            if account.synced:
                return account
        raise HTTPError(404, 'no account is synced')

    def update(self, gig, moves):
        gig.updated = max(now(), gig.updated + 1)
        gig.status = 'completed'
        gig.tips += self.dice.randint(1, 500)
        if moves:
            gig.start += self.dice.choice((-1, 1)) * self.dice.randint(1, 30 * DAY)
        gig.cached = None

    def send_change(self, account, what, gigs, former_starts):
        starts = former_starts + [gig.start for gig in gigs]
        data = {f'{what}_count': len(gigs), f'{what}_from': iso(min(starts)), f'{what}_to': iso(max(starts))}
        if what != 'added':
            data[f'{what}_gigs'] = [gig.id for gig in gigs]
        return self.send(account, f'gigs.{what}', data)

    async def change_forever(self):
        loop = asyncio.get_running_loop()
        last, owed = loop.time(), 0
        while True:
            await asyncio.sleep(0.01)
            rate = 0 if self.stopped else self.settings['rate']
            last, elapsed = loop.time(), loop.time() - last
            owed = min(owed + rate * elapsed, rate + 1)
            while owed >= 1:
                owed -= 1
                with contextlib.suppress(HTTPError):
                    self.change()

    # The API ------------------------------------------------------------------

    def handle_api(self, path, query, headers):
        """Answer a request to the API.  Returns the body and the seconds to wait before."""
        if not hmac.compare_digest(headers.get('authorization', '').encode(), self.authorization.encode()):
            raise HTTPError(401, 'invalid credentials', 'WWW-Authenticate: Basic realm="Argyle"\r\n')
        settings = self.settings
        if settings['limited'] and self.dice.random() < settings['limited']:
            raise HTTPError(429, 'too many requests', f'Retry-After: {settings["retry_after"]}\r\n')
        if settings['broken'] and self.dice.random() < settings['broken']:
            raise HTTPError(500, 'something went wrong')
        delay = settings['slow_by'] if settings['slow'] and self.dice.random() < settings['slow'] else 0
        kind, _, row_id = path[len('/v2/'):].partition('/')
        if kind == 'gigs' and not row_id:
            return self.list_gigs(query), delay
        if kind == 'accounts' and not row_id:
            return self.list_rows(path, query, self.account_keys, self.accounts), delay
        rows = self.accounts
        if kind == 'gigs':
            rows = next((a.gigs for a in self.accounts.values() if row_id in a.gigs), {})
        if kind not in ('gigs', 'accounts') or row_id not in rows:
            raise HTTPError(404, 'not found')
        return rows[row_id].json(), delay

    def list_gigs(self, query):
        if 'account' not in query:
            raise HTTPError(400, '"account" is required')
        account = self.accounts.get(query['account'])
        if account is None:
            raise HTTPError(404, 'there is no such account')
        first, last = 0, len(account.order)
        if 'from_start_datetime' in query:
            first = bisect.bisect_left(account.order, (parse_time(query['from_start_datetime']),))
        if 'to_start_datetime' in query:
            last = bisect.bisect_left(account.order, (parse_time(query['to_start_datetime']) + 1,))
        return self.list_rows('/v2/gigs', query, account.order[first:last], account.gigs)

    def list_rows(self, path, query, keys, rows):
        """Return a page of the rows, whose sorted keys are tuples that end with the id."""
        try:
            limit = int(query.get('limit', 10))
            way, *place = json.loads(base64.urlsafe_b64decode(query['cursor'])) if 'cursor' in query else ['>']
            after, before = bisect.bisect_right(keys, tuple(place)), bisect.bisect_left(keys, tuple(place))
        except (ValueError, TypeError):
            raise HTTPError(400, 'invalid limit or cursor')
        if not 1 <= limit <= 200:
            raise HTTPError(400, '"limit" must be between 1 and 200')
        first = after if way == '>' else max(0, before - limit)
        page = keys[first:min(first + limit, before if way == '<' else len(keys))]

        def link(way, key):
            cursor = base64.urlsafe_b64encode(json.dumps([way, *key]).encode()).decode()
            return f'"{self.options.address}{path}?{urllib.parse.urlencode({**query, "cursor": cursor})}"'.encode()

        return b'{"next": %b, "previous": %b, "results": [%b]}' % (
            link('>', page[-1]) if page and first + len(page) < len(keys) else b'null',
            link('<', page[0]) if page and first > 0 else b'null',
            b', '.join([rows[key[-1]].json() for key in page]))

    # Control ------------------------------------------------------------------

    def handle_control(self, method, what, query, body):
        try:
            arguments = json.loads(body or b'{}')
            after = int(query.get('after', 0))
        except ValueError:
            raise HTTPError(400, 'invalid argument')
        match method, what:
            case 'GET', 'gigs':
                gigs = sorted((gig for a in self.accounts.values() for gig in a.gigs.values()), key=lambda gig: gig.id)
                return b''.join(gig.json() + b'\n' for gig in gigs)
            case 'GET', 'settings':
                answer = self.settings
            case 'POST', 'settings':
                if not arguments.keys() <= SETTINGS.keys():
                    raise HTTPError(400, 'unknown setting')
                self.settings.update(arguments)
                answer = self.settings
            case 'POST', 'stop':
                self.stopped = True
                for steps in list(self.syncing.values()):
                    collections.deque(steps, 0)
                answer = {}
            case 'GET', 'settled':
                answer = self.settled()
            case 'POST', 'change':
                account, gigs, webhooks = self.change(*map(arguments.get, ('kind', 'account', 'gigs')))
                answer = {'account': account, 'gigs': gigs, 'webhooks': webhooks}
            case 'GET', 'delivered':
                answer = self.webhooks.delivered[after:]
            case 'POST', 'take' if self.webhooks.url is None:
                answer = self.webhooks.take()
            case _:
                raise HTTPError(404, 'not found')
        return json.dumps(answer).encode()

    def settled(self):
        still = self.stopped or self.settings['rate'] == 0
        counts = self.webhooks.counts
        return {'settled': still and not self.syncing and counts['waiting'] == 0,
                'accounts': len(self.accounts), 'syncing': len(self.syncing), 'changes': self.changes,
                **counts, 'delivered': len(self.webhooks.delivered), 'answers': self.answers}


class Connection(asyncio.Protocol):
    """A connection of a client, which is kept alive.  Requests are answered in order."""

    def __init__(self, argyle):
        self.argyle = argyle
        self.received = b''
        self.busy = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        while not self.busy and (end := self.received.find(b'\r\n\r\n')) >= 0:
            lines = self.received[:end].decode('latin-1').split('\r\n')
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(':') for line in lines[1:])}
            length = int(headers.get('content-length') or 0)
            if len(self.received) < end + 4 + length:
                return
            body = self.received[end + 4:end + 4 + length]
            self.received = self.received[end + 4 + length:]
            self.answer(lines[0], headers, body)

    def answer(self, request, headers, body):
        status, more, delay = 200, '', 0
        try:
            method, target, _ = request.split(' ')
            path, _, query = target.partition('?')
            query = dict(urllib.parse.parse_qsl(query))
            if path.startswith('/v2/'):
                if method != 'GET':
                    raise HTTPError(405, 'method not allowed')
                answer, delay = self.argyle.handle_api(path, query, headers)
            elif path.startswith('/control/'):
                if self.transport.get_extra_info('peername')[0] not in ('127.0.0.1', '::1'):
                    raise HTTPError(403, 'for clients on the same machine')
                answer = self.argyle.handle_control(method, path[len('/control/'):], query, body)
            else:
                raise HTTPError(404, 'not found')
        except HTTPError as error:
            status, more, answer = error.status, error.headers, json.dumps({'detail': str(error)}).encode()
        if path.startswith('/v2/'):
            self.argyle.answers[status] += 1
        message = (f'HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n'
                   f'Content-Length: {len(answer)}\r\n{more}\r\n').encode() + answer
        close = headers.get('connection', '').lower() == 'close'
        if delay:
            self.busy = True
            asyncio.get_running_loop().call_later(delay, self.write, message, close)
        else:
            self.write(message, close)

    def write(self, message, close):
        self.busy = False
        self.transport.write(message)
        if close:
            self.transport.close()
        elif self.received:
            asyncio.get_running_loop().call_soon(self.data_received, b'')


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--listen', default='127.0.0.1:0', metavar='HOST:PORT', help='port 0: any free port')
    parser.add_argument('--user', default='id', help='the user for Basic authentication (id)')
    parser.add_argument('--password', default='secret', help='and the password (secret)')
    parser.add_argument('--webhook-url', metavar='URL', help='an http:// URL to post webhooks to')
    parser.add_argument('--secret', default='secret', help='the secret that signs webhooks (secret)')
    parser.add_argument('--subscription', action='append', metavar='NAME[:DAYS]',
                        help='a subscription to all gigs webhooks, with days_synced (payroll:30); may be repeated')
    parser.add_argument('--connections', type=int, default=16, help='connections to post webhooks over (16)')
    parser.add_argument('--accounts', type=int, default=10, help='accounts in the beginning (10)')
    parser.add_argument('--gigs', type=int, default=100, help='gigs of an account in the beginning (100)')
    parser.add_argument('--seed', type=int, help='repeats the same random choices')
    for name, (default, text) in SETTINGS.items():
        parser.add_argument('--' + name.replace('_', '-'), type=type(default), default=default,
                            help=f'{text} ({default})')
    return parser.parse_args()


async def main(options):
    loop = asyncio.get_running_loop()
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    argyle = Argyle(options)
    host, _, port = options.listen.rpartition(':')
    server = await loop.create_server(lambda: Connection(argyle), host, int(port))
    options.address = 'http://{}:{}'.format(*server.sockets[0].getsockname()[:2])
    print(f'listening on {options.address}', flush=True)
    tasks = [loop.create_task(argyle.change_forever())]
    if options.webhook_url:
        tasks += [loop.create_task(argyle.webhooks.post_forever()) for _ in range(options.connections)]
    await terminated.wait()
    server.close()


if __name__ == '__main__':
    asyncio.run(main(parse_options()))
