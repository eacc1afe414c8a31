# Consumers under writers that are slow, roll back and prepare transactions, with
# workers that get lost, sessions that are terminated and a server that is stopped
# immediately: every event is worked on once, and those of an account in order.
#
# Each event names a gig of its own.  A worker stores the gigs of a batch in the
# transaction that finishes it, so that at the end the table "done" must have the
# gigs of the log, each once for each consumer.
#
# Takes 10 seconds, with GIGS_LONG two minutes.  GIGS_SEED repeats a seed, which
# is printed.

use strict;
use warnings;

use Digest::MD5 qw(md5);
use FindBin;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);
use GigWire;

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
my $seconds = $ENV{GIGS_LONG} ? 120 : 10;
my $restart_every = $ENV{GIGS_LONG} ? 15 : 6;
my @writers = map { "w$_" } 1 .. 6;
my @workers = map { "c$_" } 1 .. 5;
my @consumers = ('one', 'many', 'many');

note "GIGS_SEED=$seed";

my $node = start_node('consumer', 'max_prepared_transactions = 50', 'max_connections = 40');
my $notes = PostgreSQL::Test::Utils::tempdir;

create_gigs($node, 'postgres');
$node->safe_psql(
	'postgres', q{
	CREATE TABLE done (consumer text, batch bigint, account_id uuid, gig uuid);
	CREATE FUNCTION log(account int, n int, outcome text DEFAULT 'applied') RETURNS void LANGUAGE sql AS $$
		INSERT INTO gigs.gig_event_log (received_at, outcome, event, account_id, name, body)
		VALUES (now(), outcome::gigs.gig_ingest_outcome, 'gigs.updated', public.account(account), 'payroll', public.hook(account, 5 * n + 2))
	$$;
	CREATE FUNCTION work(consumer text) RETURNS text LANGUAGE sql AS $$
		SELECT coalesce(string_agg(last_event_id::text, ' ' ORDER BY last_event_id), 'none') FROM gigs.read_gig_work(consumer)
	$$;
	-- The gig that the event has for itself
	CREATE FUNCTION own_gig(gigs uuid[], account_id uuid) RETURNS SETOF uuid LANGUAGE sql IMMUTABLE AS $$
		SELECT g FROM unnest(gigs) AS g WHERE g <> account_id
	$$;
	-- Work that comes back from retries is all due
	CREATE FUNCTION expire() RETURNS void LANGUAGE sql AS $$
		UPDATE gigs.gig_consumer SET leased_until = now() WHERE batch IS NOT NULL;
		UPDATE gigs.gig_consumer_retry SET due_at = now();
	$$;
});

# ---------------------------------------------------------------------------
# A prepared transaction, over a restart
# ---------------------------------------------------------------------------

sub pending
{
	return $node->safe_psql('postgres',
		q{SELECT pending_id, array_to_string(pending_transactions, ' ') LIKE '-1/%', cardinality(pending_transactions) FROM gigs.gig_consumer});
}

$node->safe_psql('postgres',
	q{SELECT gigs.create_gig_consumer('c'); BEGIN; SELECT log(1, 1); PREPARE TRANSACTION 'one'; SELECT log(2, 2)});
is($node->safe_psql('postgres', q{SELECT work('c')}), 'none', 'a prepared transaction is waited for');
is(pending(), '2|f|1', '... by its virtual transaction id');
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', q{SELECT work('c')}), 'none', '... and still after a restart');
is(pending(), '2|t|1', '... by its transaction id');
$node->safe_psql('postgres', q{BEGIN; SELECT log(3, 3); PREPARE TRANSACTION 'two'});
is($node->safe_psql('postgres', q{SELECT work('c')}), 'none', '... while others are prepared');
$node->safe_psql('postgres', q{COMMIT PREPARED 'one'});
is($node->safe_psql('postgres', q{SELECT work('c')}), '1 2', '... until it is committed');
$node->safe_psql('postgres', q{SELECT gigs.finish_gig_work(max(batch)) FROM gigs.gig_consumer; ROLLBACK PREPARED 'two'});
is($node->safe_psql('postgres', q{SELECT work('c')}), 'none', 'a prepared transaction that is rolled back leaves nothing');
is($node->safe_psql('postgres', q{SELECT position >= 3 FROM gigs.gig_consumer}), 't', '... and is passed');
$node->safe_psql('postgres', q{SELECT gigs.drop_gig_consumer('c'); TRUNCATE gigs.gig_event_log});

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

# In a client: its name, its session, and what it has done.
my ($name, $wire, %tally);
my $until;

sub connected
{
	while (!$wire)
	{
		leave() if time > $until + 30;
		$wire = eval { GigWire->connect($node, "-c application_name=$name") } or sleep 0.05;
	}
	return;
}

# Runs statements up to the first that fails.  Returns the rows of the last, or
# nothing when one has failed or the connection was lost.
my @expected_errors = ('40001', '57P01');

sub run
{
	my (@statements) = @_;
	my $answer;

	for my $statement (@statements)
	{
		connected();
		$answer = $wire->query($statement);
		if (!$answer)
		{
			$tally{lost}++;
			undef $wire;
			return;
		}
		if (defined $answer->{sqlstate})
		{
			my $sqlstate = $answer->{sqlstate};

			$tally{$sqlstate}++;
			append_to_file("$notes/unexpected", "$name: $sqlstate $answer->{message} in: $statement\n")
			  if !grep { $_ eq $sqlstate } @expected_errors;
			$wire->query('ROLLBACK') or undef $wire;
			return;
		}
	}
	return $answer->{rows};
}

# Ends the client without what Perl would clean up in its parent's name.
sub leave
{
	append_to_file("$notes/tally", join('', map { "$_ $tally{$_}\n" } keys %tally));
	POSIX::_exit(0);
}

sub write_events
{
	my $n = 0;
	my ($writer) = $name =~ /(\d+)/;
	my $event = sub {
		return sprintf "SELECT log(%d, %d, '%s')", between(1, 30), $writer + 10 * ++$n,
		  chance(0.05) ? 'stale' : 'applied';
	};
	my $pause = sub { return 'SELECT pg_sleep(' . rand(chance(0.1) ? 0.4 : 0.02) . ')' };

	while (time < $until)
	{
		# so that there are times with one writer, or none
		sleep rand 2 if chance(0.05);
		if (chance(0.5))
		{
			run($event->());
			sleep rand 0.01;
			next;
		}
		my @statements = 'BEGIN';

		push @statements, 'LOCK TABLE gigs.gig_event_log IN ROW EXCLUSIVE MODE' if chance(0.2);
		for (1 .. between(1, 5))
		{
			push @statements, $pause->() if chance(0.5);
			push @statements, chance(0.1)
			  ? ('SAVEPOINT s', $event->(), 'ROLLBACK TO s')
			  : $event->();
		}
		push @statements, $pause->() if chance(0.5);
		if (chance(0.15))
		{
			my $gid = "$name $n";

			next if !run(@statements, "PREPARE TRANSACTION '$gid'");
			$tally{prepared}++;
			sleep rand(chance(0.2) ? 1 : 0.05);

			# what is left is for the parent to commit
			run((chance(0.7) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'") if chance(0.9);
			next;
		}
		run(@statements, chance(0.8) ? 'COMMIT' : 'ROLLBACK');
	}
	return;
}

# What stores work: the gigs of those rows that are not to be tried again.
sub storing
{
	my ($consumer, @rows) = @_;

	return map {
		my ($batch, $account, $gigs) = @$_;

		"INSERT INTO done SELECT '$consumer', $batch, '$account', g FROM own_gig('$gigs', '$account') AS g"
	} @rows;
}

sub work_on_events
{
	while (time < $until + 1)
	{
		my $consumer = pick(@consumers);
		my $in_one = chance(0.3);
		my $rows = run(
			$in_one ? 'BEGIN' : (),
			sprintf("SELECT batch, account_id, updated_gigs FROM gigs.read_gig_work('%s', %d, '%d ms')",
				$consumer, between(1, 60), pick(20, 50, 50, 2000)));

		next if !$rows;
		if (!@$rows)
		{
			run('COMMIT') if $in_one;
			sleep rand 0.02;
			next;
		}

		# be slow, or never come back
		sleep rand(chance(0.3) ? 0.3 : 0.01);
		if (chance(0.05))
		{
			$tally{abandoned}++;
			undef $wire;
			next;
		}
		my $batch = $rows->[0][0];
		my @retries;
		my @kept = grep {
			my $retried = chance(0.05);

			push @retries,
			  sprintf("SELECT gigs.retry_gig_work(%d, '%s', 'a reason', '%d ms')", $batch, $_->[1], between(0, 200))
			  if $retried;
			!$retried;
		} @$rows;

		if (@retries && !$in_one && chance(0.5))
		{
			run(@retries) or next;
			@retries = ();
		}
		run($in_one ? () : 'BEGIN', @retries, storing($consumer, @kept), "SELECT gigs.finish_gig_work($batch)",
			chance(0.1) ? 'SELECT pg_sleep(0.1)' : ()) or next;
		if (chance(0.05))
		{
			run('ROLLBACK');
			next;
		}
		run('COMMIT') and $tally{batches}++;
	}
	return;
}

sub start_clients
{
	my ($what, @names) = @_;

	return map {
		my $client = $_;
		my $pid = fork;

		die "could not fork: $!" if !defined $pid;
		if ($pid == 0)
		{
			$name = $client;
			srand unpack 'L', md5("$seed $name");
			if (!eval { $what->(); 1 })
			{
				append_to_file("$notes/unexpected", "$name: $@\n");
			}
			leave();
		}
		$pid;
	} @names;
}

# ---------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------

srand unpack 'L', md5("$seed");
$node->safe_psql('postgres',
	q{SELECT gigs.create_gig_consumer('one'); SELECT gigs.create_gig_consumer('many', parts => 3)});
append_to_file("$notes/$_", '') for 'unexpected', 'tally';

$until = time + $seconds;
my $restart_at = time + $restart_every;
my @pids = (start_clients(\&write_events, @writers), start_clients(\&work_on_events, @workers));
my $killed = 0;

while (time < $until)
{
	sleep rand 0.4;
	if (time > $restart_at)
	{
		$node->stop('immediate');
		$node->start;
		$restart_at = time + $restart_every;
	}
	for my $gid (split /\n/, $node->safe_psql('postgres',
			q{SELECT gid FROM pg_prepared_xacts WHERE prepared < now() - interval '1 second'}))
	{
		# its writer may be faster
		$node->psql('postgres', "COMMIT PREPARED '$gid'");
	}
	$killed += $node->safe_psql('postgres', q{
		SELECT count(pg_terminate_backend(pid)) FROM (
			SELECT pid FROM pg_stat_activity WHERE application_name ~ '^[wc][0-9]' ORDER BY random() LIMIT 1) AS a
	});
}
waitpid $_, 0 for @pids;

my %sums;
for my $line (split /\n/, slurp_file("$notes/tally"))
{
	my ($what, $n) = $line =~ /^(.*) (\d+)$/;

	$sums{$what} += $n;
}
note "$killed sessions were terminated; ", join ', ', map { "$_ $sums{$_}" } sort keys %sums;
is(slurp_file("$notes/unexpected"), '', 'nothing failed that should not');
cmp_ok($sums{$_} || 0, '>', 0, "there were some: $_") for qw(batches abandoned prepared lost 40001);

# What is left is done here: it must not be all.
my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM done');
my @prepared = split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY gid');

$node->safe_psql('postgres', "COMMIT PREPARED '$_'") for @prepared;
$node->safe_psql(
	'postgres', q{
	CREATE PROCEDURE drain() LANGUAGE plpgsql AS $$
	DECLARE
		c text;
		b bigint;
	BEGIN
		FOREACH c IN ARRAY ARRAY['one', 'many'] LOOP
			LOOP
				PERFORM public.expire();
				COMMIT;
				WITH w AS MATERIALIZED (
					SELECT * FROM gigs.read_gig_work(c, 50)
				), d AS (
					INSERT INTO done SELECT c, w.batch, w.account_id, g FROM w, own_gig(w.updated_gigs, w.account_id) AS g
				)
				SELECT max(w.batch) INTO b FROM w;
				EXIT WHEN b IS NULL;
				PERFORM gigs.finish_gig_work(b);
				COMMIT;
			END LOOP;
		END LOOP;
	END $$;
	CALL drain();
	CREATE VIEW wanted AS
		SELECT c.consumer, l.event_id, l.account_id, g.gig
		FROM gigs.gig_event_log AS l
		CROSS JOIN LATERAL own_gig((gigs.parse_logged_gig_event(l.event, l.body)).changed_gigs, l.account_id) AS g (gig)
		CROSS JOIN (VALUES ('one'), ('many')) AS c (consumer)
		WHERE l.outcome <> 'stale';
});
my $wanted = $node->safe_psql('postgres', 'SELECT count(*) FROM wanted');

note "$wanted events to be worked on, $before done before the end";
cmp_ok($wanted, '>', $seconds * 20, 'there were events');
cmp_ok($before, '>', $wanted / 2, '... most of which were worked on meanwhile');
is($node->safe_psql('postgres', q{
		SELECT w.consumer, w.event_id FROM wanted AS w WHERE (w.consumer, w.gig) NOT IN (SELECT consumer, gig FROM done)
	}), '', 'no event was passed over');
is($node->safe_psql('postgres', q{
		SELECT d.consumer, d.account_id, max(w.event_id), array_agg(d.batch) FROM done AS d LEFT JOIN wanted AS w USING (consumer, gig)
		GROUP BY 1, 2, d.gig HAVING count(*) > 1 OR max(w.event_id) IS NULL
	}), '', 'no event was worked on twice, and none that is not there');
is($node->safe_psql('postgres', q{
		SELECT * FROM (
			SELECT d.consumer, d.account_id, w.event_id, d.batch, lag(w.event_id) OVER (PARTITION BY d.consumer, d.account_id ORDER BY d.batch, w.event_id) AS former
			FROM done AS d JOIN wanted AS w USING (consumer, gig)
		) AS o WHERE o.former > o.event_id
	}), '', 'the events of an account were worked on in their order');
is($node->safe_psql('postgres', q{
		SELECT consumer, working, events_behind, time_behind, retries, dead FROM gigs.gig_consumer_status ORDER BY consumer
	}), "many|0|0|00:00:00|0|0\none|0|0|00:00:00|0|0", 'nothing is left to do');

$node->stop;
done_testing();
