"""Webhooks on their way to the receiver: signed, posted and redelivered."""

import asyncio
import collections
import hashlib
import hmac
import json
import urllib.parse


class Webhooks:
    """The webhooks under way, and how they are posted and redelivered."""

    def __init__(self, options, settings, dice):
        self.url = urllib.parse.urlsplit(options.webhook_url) if options.webhook_url else None
        self.secret = options.secret.encode()
        self.settings = settings
        self.dice = dice
        self.queue = asyncio.Queue()
        self.delivered = []
        self.counts = collections.Counter(made=0, waiting=0, lost=0, doubled=0, late=0, redelivered=0)

    def send(self, event, name, data):
        """Queue a webhook, unless it is to be lost.  Returns its body and signature."""
        body = json.dumps({'event': event, 'name': name, 'data': data}, indent=2)
        webhook = {'event': event, 'name': name, 'account': data['account'], 'body': body, 'attempts': 0,
                   'signature': hmac.new(self.secret, body.encode(), hashlib.sha512).hexdigest()}
        self.counts['made'] += 1
        if self.dice.random() < self.settings['lost']:
            self.counts['lost'] += 1
        else:
            self.enqueue(webhook)
            if self.dice.random() < self.settings['doubled']:
                self.counts['doubled'] += 1
                self.enqueue(dict(webhook))
        return {'body': body, 'signature': webhook['signature']}

    def enqueue(self, webhook):
        self.counts['waiting'] += 1
        if self.dice.random() < self.settings['late']:
            self.counts['late'] += 1
            self.put_later(webhook, self.dice.random() * self.settings['late_by'])
        else:
            self.queue.put_nowait(webhook)

    def put_later(self, webhook, seconds):
        asyncio.get_running_loop().call_later(seconds, self.queue.put_nowait, webhook)

    def acknowledge(self, webhook):
        self.counts['waiting'] -= 1
        self.delivered.append({'event': webhook['event'], 'name': webhook['name'], 'account': webhook['account'],
                               'sha256': hashlib.sha256(webhook['body'].encode()).hexdigest(),
                               'attempts': webhook['attempts']})

    def take(self):
        taken = []
        while not self.queue.empty():
            webhook = self.queue.get_nowait()
            webhook['attempts'] += 1
            self.acknowledge(webhook)
            taken.append({'body': webhook['body'], 'signature': webhook['signature']})
        return taken

    async def post_forever(self):
        """Post webhooks over a connection of its own, one after the other."""
        stream = None
        while True:
            webhook = await self.queue.get()
            webhook['attempts'] += 1
            status = None
            if stream is not None and stream[0].at_eof():  # the receiver has closed it
                stream[1].close()
                stream = None
            try:
                if stream is None:
                    connecting = asyncio.open_connection(self.url.hostname, self.url.port or 80)
                    stream = await asyncio.wait_for(connecting, self.settings['timeout'])
                status, keep = await asyncio.wait_for(self.post(webhook, *stream), self.settings['timeout'])
            except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.LimitOverrunError):
                keep = False
            if not keep and stream is not None:
                stream[1].close()
                stream = None
            if status is not None and 200 <= status < 300:
                self.acknowledge(webhook)
            elif webhook['attempts'] == self.settings['attempts']:
                self.counts['waiting'] -= 1
                self.counts['lost'] += 1
            else:
                self.counts['redelivered'] += 1
                self.put_later(webhook, min(self.settings['pause'] * 2 ** min(webhook['attempts'] - 1, 20),
                                            self.settings['max_pause']))

    async def post(self, webhook, reader, writer):
        """Post a webhook.  Returns the status, and whether the connection can be kept."""
        body = webhook['body'].encode()
        path = (self.url.path or '/') + (f'?{self.url.query}' if self.url.query else '')
        head = (f'POST {path} HTTP/1.1\r\nHost: {self.url.netloc}\r\nContent-Type: application/json\r\n'
                f'Content-Length: {len(body)}\r\nX-Argyle-Signature: {webhook["signature"]}\r\n\r\n')
        writer.write(head.encode() + body)
        head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').lower()
        status = int(head.split(None, 2)[1])
        headers = dict(line.split(':', 1) for line in head.split('\r\n')[1:] if line)
        if 'content-length' in headers:
            await reader.readexactly(int(headers['content-length']))
        elif 'chunked' in headers.get('transfer-encoding', ''):
            while (size := int((await reader.readline()).split(b';')[0], 16)) > 0:
                await reader.readexactly(size + 2)
            await reader.readline()
        elif status != 204:
            return status, False
        return status, 'close' not in headers.get('connection', '')
