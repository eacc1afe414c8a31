# Compares the tables with the notes of GigClients, once the server has recovered:
# what was acknowledged must be there, as a whole and once, and what was not
# acknowledged must be there as a whole or not at all.  GigRules tells what the
# accounts must be, given the log.

package GigLedger;

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigNotes;
use GigRules;
use GigStorage;
use GigTest qw(:DEFAULT :dice);

my @themes = (
	lost => 'what was acknowledged is there',
	half => 'what is there is there as a whole, and once',
	told => 'outcomes told were true',
	ids => 'no event_id was given out twice',
	work => 'consumers have processed each event once');

# Options: clients, a GigClients.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		%options,
		sum => { map { $_ => 0 } qw(acknowledged duplicates mended batches prepared),
			map { ($_, "$_ unwatched") } qw(committed lost unknown) }
	}, $class;

	$self->forget;
	return $self;
}

# Forgets everything, as the tables are empty.
sub forget
{
	my ($self) = @_;

	# of each event: how often it has been delivered, how many outcomes told that a
	# delivery was the first, and whether such an outcome may not have been noted
	$self->{truth} = {};
	# the rows of inbox and backlogs, by unit and place: the event's id, the item's
	# mark, the table, and the outcome or ''
	$self->{rows} = {};
	$self->{last_event_id} = 0;
	$self->{rules} = GigRules->new;
	return;
}

sub admin { return $_[0]{clients}{server}->admin }

sub wrong { my ($self, $theme, $what) = @_; push @{ $self->{wrong}{$theme} }, $what; return }

# An assertion that nothing is wrong.
sub all_well
{
	my ($title, @wrong) = @_;

	splice @wrong, 20, @wrong - 20, '... and ' . (@wrong - 20) . ' more' if @wrong > 20;
	return is(join("\n", @wrong), '', $title);
}

# Checks everything, given the notes of the last round.
sub check
{
	my ($self, $title) = @_;
	my $notes = read_notes($self->{clients});
	my $units = $notes->{units};

	$self->{sum}{batches} += keys %{ $notes->{batches} };
	$self->{sum}{acknowledged} += $notes->{acknowledged};

	$self->{wrong} = {};
	$self->{least} = {};
	$self->{most} = {};
	# the consumer must not pass what prepared transactions will add
	$self->consume;
	$self->wrong('half', $_) for $self->finish_prepared($units);
	$self->read_tables;
	$self->check_unit($_) for grep { !$_->{table} } @$units;
	$self->check_rows($notes->{drained});
	$self->check_log;
	$self->check_deliveries;
	$self->check_work($notes->{batches});

	all_well("$title: clients got no error but serialization failures", @{ $notes->{errors} });
	for (my $i = 0; $i < @themes; $i += 2)
	{
		all_well("$title: $themes[$i + 1]", @{ $self->{wrong}{ $themes[$i] } || [] });
	}
	$self->{rules}->check_tables($self->{clients}{server}->node, 'postgres', $title);
	all_well("$title: the log is found by time", check_brin($self->admin));
	all_well("$title: heaps and indexes are sound", check_storage($self->admin));

	my $account_rows = 'SELECT a::text FROM gigs.gig_account_sync AS a ORDER BY account_id';
	my @before = map { $_->[0] } $self->admin->rows($account_rows);
	my ($rebuilt) = $self->admin->rows('SELECT * FROM gigs.rebuild_gig_sync()');
	my @after = map { $_->[0] } $self->admin->rows($account_rows);
	is( join("\n", join('|', @$rebuilt), first_difference(\@after, \@before)),
		@before . "|0\n",
		"$title: applying the log again changes nothing");
	return Test::More->builder->is_passing;
}

# ---------------------------------------------------------------------------
# Prepared transactions
# ---------------------------------------------------------------------------

# Commits or rolls back what is prepared.  A transaction that was prepared must be
# there still, or committed.
sub finish_prepared
{
	my ($self, $units) = @_;
	my %prepared = map { $_->[0] => 1 } $self->admin->rows('SELECT gid FROM pg_prepared_xacts');

	for my $unit (@$units)
	{
		if (delete $prepared{ $unit->{name} })
		{
			$unit->{fate} = pick('acknowledged', 'undone');
			$self->admin->rows(($unit->{fate} eq 'undone' ? 'ROLLBACK' : 'COMMIT')
				. " PREPARED '$unit->{name}'");
			$self->{sum}{prepared}++;
		}
		elsif ($unit->{P})
		{
			$unit->{fate} = 'acknowledged';
		}
	}
	# those of workers
	for my $gid (grep { /^work/ } sort keys %prepared)
	{
		delete $prepared{$gid};
		$self->admin->rows(pick('ROLLBACK', 'COMMIT') . " PREPARED '$gid'");
		$self->{sum}{prepared}++;
	}
	return map { "no client has prepared $_" } sort keys %prepared;
}

# ---------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------

sub read_tables
{
	my ($self) = @_;
	my ($admin, $clients) = ($self->admin, $self->{clients});

	$self->{found} = {};
	for my $table ('inbox', @{ $clients->{backlogs} })
	{
		for ($admin->rows("SELECT unit, place, outcome, md5(body), convert_from(body, 'UTF8')::json->>'id' FROM $table"))
		{
			my ($unit, $place, $outcome, $md5, $id) = @$_;

			$self->wrong('half', "row $unit $place is there twice")
			  if $self->{found}{"$unit $place"};
			$self->wrong('half', "row $unit $place is not what was sent")
			  if $md5 ne md5_hex($clients->delivery_of($id)->{sent});
			$self->{found}{"$unit $place"} =
			  { table => $table, outcome => defined $outcome ? $outcome : '', id => $id };
		}
	}

	# the rows of the log in their order, a duplicate with the id of its original
	$self->{log} = [
		$admin->rows(
			q{SELECT l.event_id, convert_from(coalesce(l.body, o.body), 'UTF8')::json->>'id', l.outcome,
				(extract(epoch FROM l.received_at) * 1000000)::bigint
			FROM gigs.gig_event_log AS l
			LEFT JOIN gigs.gig_event_log AS o ON o.event_id = l.duplicate_of
			ORDER BY l.event_id})
	];
	$self->{quarantine} = [
		$admin->rows(
			q{SELECT quarantine_id, convert_from(body, 'UTF8')::json->>'id',
				(extract(epoch FROM received_at) * 1000000)::bigint
			FROM gigs.gig_quarantine
			ORDER BY quarantine_id})
	];
	$self->{counted} = {};
	$self->{counted}{ $_->[1] }++ for @{ $self->{log} }, @{ $self->{quarantine} };
	$self->{logged} = { map { $_->[0] => "$_->[2] $_->[1]" } @{ $self->{log} } };
	return;
}

# Counts a delivery, which is certain or possible, and whose outcome has been told
# or not.
sub count_delivery
{
	my ($self, $id, $certain, $is_told) = @_;

	$self->{most}{$id}++;
	$self->{least}{$id}++ if $certain;
	$self->{truth}{$id}{untold} = 1 if !$is_told;
	return;
}

# Returns what became of a unit in flight.  All of it that can tell must agree.
sub fate_of
{
	my ($self, $unit) = @_;
	my @there;

	for my $item (@{ $unit->{items} })
	{
		push @there, $self->{found}{"$unit->{name} $item->{place}"} ? 1 : 0
		  if $item->{entry} ne 'f';
		push @there, $self->{counted}{ $item->{id} } ? 1 : 0
		  if $item->{entry} ne 'b' && $item->{mark} eq '+';
	}
	my $n = grep { $_ } @there;

	$self->wrong('half', "of unit $unit->{name} $n of " . @there . ' are there')
	  if $n > 0 && $n < @there;
	return !@there ? 'unknown' : $n ? 'committed' : 'lost';
}

sub check_unit
{
	my ($self, $unit) = @_;
	my $fate = $unit->{fate};

	if ($fate eq 'in flight')
	{
		$fate = $self->fate_of($unit);
		$self->{sum}{ $unit->{L} ? "$fate unwatched" : $fate }++;
	}
	for my $item (@{ $unit->{items} })
	{
		my $key = "$unit->{name} $item->{place}";
		my $row = $self->{found}{$key};

		if ($fate eq 'lost' || $fate eq 'undone')
		{
			$self->wrong('half', "row $key is there, the unit is $fate") if $row;
			next;
		}
		$self->{sum}{acknowledged}++
		  if $fate eq 'acknowledged' && $item->{entry} ne 'b' && $item->{mark} ne '!';
		if ($item->{entry} eq 'f')
		{
			$self->check_answer($item, $fate ne 'unknown');
			next;
		}
		if (!$row)
		{
			$self->wrong('lost', "row $key is missing");
			next;
		}
		$self->wrong('told', "row $key is $row->{outcome}, was told to be $item->{told}")
		  if defined $item->{told} && $item->{told} ne '-' && $item->{told} ne $row->{outcome};
		$self->{rows}{$key} = { %$row, outcome => '', id => $item->{id}, mark => $item->{mark} };
		$self->wrong('half', "row $key is in table $row->{table}")
		  if ($row->{table} eq 'inbox') != ($item->{entry} eq 'x');
	}
	return;
}

# Checks what a function has answered.
sub check_answer
{
	my ($self, $item, $certain) = @_;
	my ($id, $told) = @$item{qw(id told)};

	$self->count_delivery($id, $certain, defined $told) if $item->{mark} ne '!';
	return if !defined $told;
	my ($outcome, $event_id) = split / /, $told;

	$self->check_outcome($item, $outcome);
	$self->wrong('ids', "$id was told to be event $event_id, $outcome, which is "
		  . ($self->{logged}{$event_id} || 'missing'))
	  if defined $event_id && ($self->{logged}{$event_id} || '') ne "$outcome $id";
	return;
}

sub check_outcome
{
	my ($self, $item, $outcome) = @_;
	my $id = $item->{id};
	my $possible =
	    $item->{mark} eq '!' ? qr/^rejected$/
	  : $self->{clients}->delivery_of($id)->{is_unknown} ? qr/^quarantined$/
	  :                                                    qr/^(applied|stale|duplicate)$/;

	$self->wrong('told', "$id was \"$outcome\"") if $outcome !~ $possible;
	$self->{truth}{$id}{first}++ if $outcome =~ /^(applied|stale)$/;
	return;
}

# Checks the rows of inbox and backlogs, and their outcomes that are new.
sub check_rows
{
	my ($self, $drained) = @_;
	my %now;

	for my $key (sort keys %{ $self->{found} })
	{
		my $row = $self->{found}{$key};
		my $known = $self->{rows}{$key};

		if (!$known || $known->{id} ne $row->{id} || $known->{table} ne $row->{table})
		{
			$self->wrong('half', "row $key is not what was sent");
			next;
		}
		next if $row->{outcome} eq $known->{outcome} && $row->{outcome} ne '';
		# rows of a backlog wait for a drain
		next if $row->{outcome} eq '' && $row->{table} ne 'inbox';

		$self->wrong('half', "row $key was $known->{outcome}, is $row->{outcome}")
		  if $known->{outcome} ne '';
		$known->{outcome} = $row->{outcome};
		$now{ $row->{table} }++;
		$self->count_delivery($row->{id}, 1, 1) if $known->{mark} ne '!';
		$self->check_outcome($known, $row->{outcome});
	}
	for my $key (grep { !$self->{found}{$_} } sort keys %{ $self->{rows} })
	{
		$self->wrong('lost', "row $key has vanished");
	}
	for my $table (sort keys %$drained)
	{
		my $n = $now{$table} || 0;

		$self->wrong('lost', "$drained->{$table} rows of $table were drained, now $n are")
		  if $n < $drained->{$table};
	}
	return;
}

# Has the rules apply the rows of the log that are new, and the quarantine.
sub check_log
{
	my ($self) = @_;
	my $clients = $self->{clients};

	for my $row (@{ $self->{log} })
	{
		my ($event_id, $id, $outcome, $received_at) = @$row;

		next if $event_id <= $self->{last_event_id};
		$self->{rules}->apply($clients->delivery_of($id), $event_id, $received_at);
		$self->{sum}{duplicates}++ if $outcome eq 'duplicate';
		$self->{sum}{mended}++ if $clients->delivery_of($id)->{is_unknown};
	}
	$self->{last_event_id} = $self->{log}[-1][0] if @{ $self->{log} };
	$self->{rules}{quarantine} = [
		map {
			my $delivery = $clients->delivery_of($_->[1]);

			+{
				%$delivery,
				body => $delivery->{sent},
				sqlstate => '0A000',
				received_at => $_->[2]
			};
		} @{ $self->{quarantine} }
	];
	return;
}

# Checks how often events have been delivered, by the log and the quarantine.
sub check_deliveries
{
	my ($self) = @_;
	my %ids = map { %$_ } $self->{truth}, $self->{counted};

	for my $id (sort keys %ids)
	{
		my $known = $self->{truth}{$id} ||= {};
		my $counted = $self->{counted}{$id} || 0;
		my $before = $known->{deliveries} || 0;
		my $least = $before + ($self->{least}{$id} || 0);
		my $most = $before + ($self->{most}{$id} || 0);

		$self->wrong('lost', "$id was delivered $least times, counted $counted")
		  if $counted < $least;
		$self->wrong('half', "$id was delivered at most $most times, counted $counted")
		  if $counted > $most;
		$known->{deliveries} = $counted;
		next if !$most || !$counted || $self->{clients}->delivery_of($id)->{is_unknown};

		my $first = $known->{first} || 0;
		$self->wrong('told', "$id was told $first times to be new")
		  if $first > 1 || $first == 0 && !$known->{untold};
	}
	return;
}

# ---------------------------------------------------------------------------
# Consumers
# ---------------------------------------------------------------------------

# Of each account, the events processed, those that wait for a retry, and those
# not finished yet must be all that the log has.  Finished batches must be there.
sub check_work
{
	my ($self, $batches) = @_;
	my %done = map { $_->[0] => $_->[1] }
	  $self->admin->rows('SELECT batch, count(*) FROM done GROUP BY 1');

	for my $batch (sort { $a <=> $b } grep { $batches->{$_} } keys %$batches)
	{
		my $n = $done{$batch} || 0;

		$self->wrong('lost', "of batch $batch $n of $batches->{$batch} accounts are there")
		  if $n != $batches->{$batch};
	}
	$self->wrong('work', join ' ', 'account', map { defined $_ ? $_ : 'none' } @$_)
	  for $self->admin->rows(
		q{
		SELECT a.account_id, d.events AS done, r.events AS retried, l.later, l.events
		FROM gigs.gig_account_sync AS a
		JOIN gigs.gig_consumer AS c ON c.name = 'fetch' AND c.part = gigs.gig_consumer_part(a.account_id, c.parts)
		LEFT JOIN gigs.gig_consumer_retry AS r ON r.consumer = c.name AND r.account_id = a.account_id
		LEFT JOIN (SELECT account_id, sum(events) AS events FROM done GROUP BY 1) AS d ON d.account_id = a.account_id
		CROSS JOIN LATERAL (
			SELECT count(*) AS events,
				count(*) FILTER (WHERE event_id > greatest(c.position, r.last_event_id)) AS later
			FROM gigs.gig_event_log
			WHERE account_id = a.account_id AND outcome <> 'stale'
		) AS l
		WHERE coalesce(d.events, 0) + coalesce(r.events, 0) + l.later <> l.events});
	return;
}

# Processes all that can be read.
sub consume
{
	my ($self) = @_;

	1 while $self->admin->rows(
		q{WITH work AS (INSERT INTO done SELECT batch, account_id, events FROM gigs.read_gig_work('fetch') RETURNING batch)
		SELECT gigs.finish_gig_work(max(batch)) FROM work HAVING count(*) > 0});
	return;
}

# Drains the backlogs and processes everything, for as long as retries wait or
# killed workers have leases.  Nothing must be left.
sub finish
{
	my ($self, $title) = @_;
	my ($clients, $admin) = ($self->{clients}, $self->admin);
	my $behind;

	$admin->rows("CALL gigs.drain_gig_inbox('$_')") for @{ $clients->{backlogs} };
	for (1 .. 500)
	{
		$self->consume;
		$behind = $admin->value(
			q{SELECT (SELECT count(*) FROM gigs.gig_consumer_retry)
				+ (SELECT count(*) FROM gigs.gig_event_log AS l JOIN gigs.gig_consumer AS c
					ON c.part = gigs.gig_consumer_part(l.account_id, c.parts) WHERE l.event_id > c.position)});
		last if $behind == 0;
		select undef, undef, undef, 0.02;
	}
	$self->check($title);
	is(join(' ', grep { $self->{rows}{$_}{outcome} eq '' } sort keys %{ $self->{rows} }),
		'', "$title: nothing is left in the backlogs");
	is($behind, 0, "$title: the consumer is behind by nothing");
	return Test::More->builder->is_passing;
}

sub figures
{
	my ($self) = @_;
	my $sum = $self->{sum};
	my @fates = ([ 'committed', 'found committed' ], [ 'lost', 'not' ], [ 'unknown', 'unknown' ]);

	return join "\n",
	  "$sum->{acknowledged} events acknowledged, $sum->{duplicates} duplicates, $sum->{mended} mended, "
	  . "$sum->{batches} batches finished",
	  'transactions in flight: ' . join(', ', map { $sum->{ $_->[0] } . " $_->[1]" } @fates),
	  'transactions whose answer was not awaited: '
	  . join(', ', map { $sum->{"$_->[0] unwatched"} . " $_->[1]" } @fates),
	  "prepared transactions left by a crash: $sum->{prepared}";
}

1;
