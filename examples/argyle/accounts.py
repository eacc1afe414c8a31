"""Accounts and their gigs, as Argyle's API shows them."""

import bisect
import datetime
import json
import time

DAY = 86_400_000_000
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def iso(microseconds):
    return (EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat().replace('+00:00', 'Z')


def now():
    return time.time_ns() // 1000


def new_id(dice):
    digits = f'{dice.getrandbits(128):032x}'
    return '-'.join((digits[:8], digits[8:12], '4' + digits[13:16], '8' + digits[17:20], digits[20:]))


class Gig:
    """A gig; times are microseconds since 1970, money is cents."""

    __slots__ = ('id', 'account', 'start', 'duration', 'status', 'pay', 'tips', 'created', 'updated', 'cached')

    def __init__(self, dice, account, start):
        self.id = new_id(dice)
        self.account = account
        self.start = start
        self.duration = dice.randint(300, 7200)
        self.status = dice.choice(('completed', 'completed', 'completed', 'in_progress', 'cancelled'))
        self.pay = dice.randint(300, 6000)
        self.tips = dice.choice((0, dice.randint(50, 1500)))
        self.created = self.updated = now()
        self.cached = None

    def json(self):
        """Return the gig as the API shows it."""
        if self.cached is None:
            end = self.start + self.duration * 1_000_000
            money = [f'{cents // 100}.{cents % 100:02d}' for cents in
                     (self.pay + self.tips, self.pay * 5 // 4, self.pay // 4, self.pay, self.tips)]
            self.cached = json.dumps({
                'id': self.id, 'account': self.account.id, 'user': self.account.user, 'employer': self.account.employer,
                'created_at': iso(self.created), 'updated_at': iso(self.updated),
                'status': self.status, 'type': 'delivery' if self.duration % 2 else 'rideshare', 'task_count': 1,
                'start_datetime': iso(self.start), 'end_datetime': iso(end), 'duration': self.duration,
                'all_datetimes': {'request_at': iso(self.start), 'accept_at': iso(self.start),
                                  'pickup_at': iso(self.start), 'dropoff_at': iso(end), 'cancel_at': None,
                                  'shift_start': None, 'shift_end': None, 'breaks': None},
                'timezone': 'America/New_York', 'earning_type': 'work',
                'distance': f'{self.duration / 300:.2f}', 'distance_unit': 'miles', 'metadata': {},
                'income': {'currency': 'USD', 'total': money[0], 'total_charge': money[1], 'fees': money[2],
                           'pay': money[3], 'tips': money[4], 'bonus': '0.00', 'other': None},
            }).encode()
        return self.cached


class Account:
    """An account: its gigs that have been retrieved, and those that have not."""

    def __init__(self, dice, n_gigs):
        self.id = new_id(dice)
        self.user = new_id(dice)
        self.employer = dice.choice(('uber', 'lyft', 'doordash', 'grubhub'))
        self.synced = False
        self.created = self.updated = now()
        self.gigs = {}
        self.order = []
        self.unretrieved = sorted((self.new_gig(dice) for _ in range(n_gigs)), key=lambda gig: gig.start, reverse=True)

    def new_gig(self, dice):
        # Most starts are whole seconds, as Argyle's; some are not.
        start = now() - dice.randint(0, 400 * DAY)
        return Gig(dice, self, start if dice.random() < 0.1 else start // 1_000_000 * 1_000_000)

    def add(self, gig):
        self.gigs[gig.id] = gig
        bisect.insort(self.order, (gig.start, gig.id))

    def remove(self, gig):
        del self.gigs[gig.id]
        del self.order[bisect.bisect_left(self.order, (gig.start, gig.id))]

    def retrieve(self, days=None):
        """Retrieve the gigs that are at most so many days older than the latest, or all."""
        latest = self.order[-1][0] if self.order else self.unretrieved[0].start if self.unretrieved else 0
        n = len(self.unretrieved)
        if days is not None:
            n = bisect.bisect_right(self.unretrieved, days * DAY, key=lambda gig: latest - gig.start)
        for gig in self.unretrieved[:n]:
            self.add(gig)
        del self.unretrieved[:n]

    def available(self):
        return {'available_from': iso(self.order[0][0]) if self.order else None,
                'available_to': iso(self.order[-1][0]) if self.order else None,
                'available_count': len(self.order)}

    def json(self):
        gigs = None
        if self.order or not self.synced:
            gigs = {'status': 'synced' if self.synced else 'in_progress', 'updated_at': iso(self.updated),
                    **self.available()}
        return json.dumps({
            'id': self.id, 'user': self.user, 'employers': [self.employer], 'item': f'item_{self.employer}',
            'source': self.employer, 'created_at': iso(self.created), 'updated_at': iso(self.updated),
            'connection': {'status': 'connected', 'error_code': None, 'error_message': None},
            'ongoing_refresh': {'status': 'enabled'},
            'availability': {'paystubs': None, 'shifts': None, 'gigs': gigs},
        }).encode()
