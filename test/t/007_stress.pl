# Sixteen sessions at once on a few accounts, through all doors, beside all who
# read, take, rebuild and prune: nothing is lost, nothing counted twice, nobody
# gets into anybody's way, and the log is in the order of application.
#
# 3 seconds with tables written directly, 3 by SQL, 3 with both at once, and 2
# of transactions that may deadlock.  GIGS_STRESS_SECONDS makes it as long in
# all, GIGS_LONG three minutes.
#
# Everything is drawn from one seed, which a failure prints.  GIGS_SEED draws
# the same webhooks again, though the sessions will meet in other ways.

use strict;
use warnings;

use Digest::MD5 qw(md5 md5_hex);
use Digest::SHA qw(sha256);
use FindBin;
use IPC::Open2;
use List::Util qw(shuffle sum0);
use POSIX ();
use Storable qw(store retrieve);
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
$seed = int $seed;
my $seconds = $ENV{GIGS_STRESS_SECONDS} || ($ENV{GIGS_LONG} ? 180 : 11);
note "GIGS_SEED=$seed";

# How often a statement is tried again that could not be serialized.
my $max_attempts = 1000;

# How long a session may take to answer, and to end.
my $patience = $PostgreSQL::Test::Utils::timeout_default;

sub uuid { return join '-', unpack 'A8 A4 A4 A4 A12', md5_hex(join '/', @_) }

# ---------------------------------------------------------------------------
# Webhooks
# ---------------------------------------------------------------------------

# Half of the accounts differ in their last bytes only.
my @accounts = map {
	my $id = uuid($seed, 'account', $_);

	substr $id, 0, 18, 'aaaaaaaa-bbbb-4ccc' if $_ % 2;
	$id;
} 1 .. 8;

# Accounts of which only the end of the log is left.
my $npruned_accounts = 200;

# So many bodies of each account were delivered long before.
my $nold = 200;

my @kinds = qw(updated updated updated removed removed added
  partially_synced partially_synced);

# Every so many seconds all bring a batch of accounts that are new, in orders of
# their own.
my $newcomers_every = 0.2;
my $nnewcomers = 30;

# A secret that stays, those that come and go have other names.
my $secret = 'always';

# The n-th webhook of an account is always the same.  Returns its body and its
# subscription.  A gig is named by webhooks that are near to each other.
sub webhook
{
	my ($account, $n) = @_;
	my @r = unpack 'N4', md5("$seed/$account/$n");
	my $kind = $r[0] % 37 == 0 ? 'fully_synced' : $kinds[ $r[0] % @kinds ];
	my $name = $r[1] % 3 == 0 ? 'unsigned' : $r[1] % 3 == 1 ? 'signed' : 'rotated';
	my $data = sprintf '"account":"%s","user":"%s","available_count":%d',
	  $account, uuid($seed, $account, 'user'), $r[2] % 10000;

	if ($kind eq 'partially_synced')
	{
		$data .= sprintf ',"days_synced":%d', $r[3] % 400;
	}
	elsif ($kind ne 'fully_synced')
	{
		$data .= sprintf ',"%s_count":%d', $kind, 1 + $r[3] % 5;
	}
	if ($kind eq 'updated' || $kind eq 'removed')
	{
		$data .= sprintf ',"%s_gigs":[%s]', $kind, join ',', map {
			'"' . uuid($seed, $account, 'gig', int(($n + $r[3] % 7) / 4) + $_) . '"'
		} 0 .. $r[1] % 3;
	}
	$data .= ',"available_to":"2024-01-01T00:00:00Z"' if $r[2] % 3;
	return (qq({"event":"gigs.$kind","name":"$name","data":{$data},"n":$n}), $name);
}

# What a delivery looks like in SQL; a signature that is given wins.
sub delivery
{
	my ($account, $n, $signature) = @_;
	my ($body, $name) = webhook($account, $n);
	my $digest = unpack 'H32', sha256($body);

	$signature = $name eq 'unsigned' ? undef : sign($body, $secret)
	  if !defined $signature;
	return {
		account => $account,
		digest => $digest,
		name => $name,
		body => $body,
		body_sql => bytea_literal($body),
		signature => $signature,
		signature_sql => text_literal($signature)
	};
}

# ---------------------------------------------------------------------------
# A session: psql at the end of two pipes
# ---------------------------------------------------------------------------

# In a worker: what its work has come to, and its session.
my (%tally, $acks, $from_psql, $to_psql, $errors, $worker_name);

# Runs a statement.  Returns its SQLSTATE, '00000' if all is well, and the lines
# that it printed.
my $asked = 0;
my $running;

sub run
{
	my ($statement) = @_;
	my $end = 'asked ' . ++$asked;
	my $is_copy = $statement =~ /^\\\.\z/m;
	my @lines;

	$running = $statement;
	seek $errors, 0, 2 if $is_copy;
	print {$to_psql} "$statement\n", $is_copy ? '' : ";\n",
	  "\\echo $end :ERROR :SQLSTATE\n"
	  or die "$worker_name: could not write to psql: $!";
	alarm $patience;
	while (defined(my $line = <$from_psql>))
	{
		chomp $line;
		if ($line =~ /^$end (true|false) (\w+)$/)
		{
			my $sqlstate = $is_copy ? error_of_copy() : $2;

			alarm 0;
			$tally{statements}++;
			return ($sqlstate, @lines);
		}
		push @lines, $line;
	}
	die "$worker_name: psql has ended, at: $statement";
}

# psql does not set its variables after COPY, but it has told of the error before
# it goes on.
sub error_of_copy
{
	my $sqlstate = '00000';

	while (my $line = <$errors>)
	{
		$sqlstate = $1 if $line =~ /^ERROR:  (\w{5}):/;
	}
	seek $errors, 0, 1;
	return $sqlstate;
}

sub unexpected
{
	my ($what, $sqlstate, $statement) = @_;

	$tally{deadlocks}++ if $sqlstate eq '40P01';
	push @{ $tally{unexpected} },
	  "$worker_name: $what: $sqlstate: " . substr($statement, 0, 600)
	  if ++$tally{nunexpected} <= 5;
	return;
}

# Default of the session's transactions.
my $isolation = 'read committed';

sub change_isolation
{
	$isolation = pick(('read committed') x 3, 'repeatable read', 'serializable');
	run("SET default_transaction_isolation = '$isolation'");
	return;
}

# Tells whether an error is one to try again after, and counts it.
my $may_deadlock = 0;

sub is_to_be_retried
{
	my ($sqlstate) = @_;

	if ($sqlstate eq '40001' && $isolation ne 'read committed')
	{
		$tally{"retries, $isolation"}++;
		return 1;
	}
	if ($sqlstate eq '40P01' && $may_deadlock)
	{
		$tally{'retries, deadlock'}++;
		return 1;
	}
	return 0;
}

# Runs a statement that is a transaction of its own, and again while that is to
# be retried.  Returns whether it is good, and the lines that it printed, or its
# SQLSTATE where that is one that may be; nothing where something is wrong.
sub insist
{
	my ($statement, @allowed) = @_;

	for my $attempt (1 .. $max_attempts)
	{
		my ($sqlstate, @lines) = run($statement);

		return (1, @lines) if $sqlstate eq '00000';
		next if is_to_be_retried($sqlstate);
		return (0, $sqlstate) if grep { $_ eq $sqlstate } @allowed;
		unexpected($isolation, $sqlstate, $statement);
		return;
	}
	unexpected($isolation, "$max_attempts attempts", $statement);
	return;
}

# The same for several statements in one transaction.
sub insist_together
{
	my (@statements) = @_;

  ATTEMPT:
	for my $attempt (1 .. $max_attempts)
	{
		my @all;

		run('BEGIN');
		for my $statement (@statements, 'COMMIT')
		{
			my ($sqlstate, @lines) = run($statement);

			if ($sqlstate eq '00000')
			{
				push @all, @lines;
				next;
			}
			run('ROLLBACK');
			next ATTEMPT if is_to_be_retried($sqlstate);
			unexpected("$isolation, in a transaction", $sqlstate, $statement);
			return;
		}
		return (1, @all);
	}
	unexpected($isolation, "$max_attempts attempts", $statements[0]);
	return;
}

sub good_lines { my ($good, @lines) = @_; return @lines }

# Notes what has been acknowledged, and since when it was under way.
sub acknowledge
{
	my ($delivery, $began, $door, $outcome, $event_id) = @_;

	$tally{$outcome}++;
	printf {$acks} "%s\t\\\\x%s\t%.6f\t%s\t%s\t%s\n", $delivery->{account},
	  $delivery->{digest}, $began, $door, $outcome,
	  defined $event_id && $event_id ne '' ? $event_id : '\\N';
	return;
}

# Checks a refusal.  It is what it ought to be, or worth a line.
sub refused
{
	my ($door, $got, $delivery) = @_;

	if ($got eq '28000') { $tally{refused}++; }
	else { unexpected("$door: forged", $got, $delivery->{body}); }
	return;
}

# ---------------------------------------------------------------------------
# What sessions do
# ---------------------------------------------------------------------------

# Where the worker's webhooks are at: all workers go about as fast, and what
# each brings, others bring as well.
my $place = 0;

# Where they began in this round, and which new accounts they bring together.
my $from = 0;
my $newcomers = 0;

sub next_delivery
{
	my $account = pick(@accounts);

	$place += 0.08;
	if (chance(0.05))
	{
		# of an account that is new, to all who bring it
		return delivery(uuid($seed, 'new', int($place) - between(0, 3)),
			between(0, 2));
	}
	return delivery($account, -between(1, $nold)) if chance(0.1);
	return delivery($account, int($place) + between(0, 9));
}

sub forged_delivery
{
	my $delivery = next_delivery();
	my $signature = sign($delivery->{body}, 'a guess');

	$delivery->{signature} = $signature;
	$delivery->{signature_sql} = text_literal($signature);
	return $delivery;
}

sub several_deliveries
{
	my @deliveries = map { next_delivery() } 1 .. pick(2, 3, 4, 6, 20);

	push @deliveries, pick(@deliveries) if chance(0.5);
	return shuffle(@deliveries);
}

sub batch_statement
{
	return
	    'SELECT outcome, event_id, sqlstate FROM gigs.ingest_gig_events(ARRAY['
	  . join(',', map { $_->{body_sql} } @_)
	  . '], ARRAY['
	  . join(',', map { "$_->{signature_sql}::text" } @_)
	  . ']) ORDER BY ord';
}

sub inbox_rows
{
	return join ', ', map {
		"('$_->{account}', '\\x$_->{digest}', $_->{body_sql}, $_->{signature_sql})"
	} @_;
}

my $inbox_columns = 'account_id, body_digest, body, signature';

# The rows of one statement are calls of one transaction: with accounts that
# are there, and in their order, they can't deadlock.
sub deliveries_in_order
{
	my %is_known = map { $_ => 1 } @accounts;

	return sort { $a->{account} cmp $b->{account} }
	  grep { $is_known{ $_->{account} } } next_delivery(), several_deliveries();
}

sub copy_statement
{
	return "COPY inbox ($inbox_columns) FROM stdin;\n"
	  . join('', map {
			join("\t", $_->{account}, "\\\\x$_->{digest}",
				'\\\\x' . unpack('H*', $_->{body}),
				defined $_->{signature} ? $_->{signature} : '\\N')
			  . "\n"
		} @_)
	  . '\\.';
}

my %work = (
	single => sub {
		my $forged = chance(0.05);
		my $delivery = $forged ? forged_delivery() : next_delivery();
		my $began = time;
		my ($good, $result) = insist(
			"SELECT gigs.ingest_gig_event($delivery->{body_sql}, $delivery->{signature_sql})",
			$forged ? '28000' : ());

		return if !defined $good;
		return refused('single', $result, $delivery) if $forged;
		acknowledge($delivery, $began, 'single', $result);
	},
	try => sub {
		my $forged = chance(0.05);
		my $delivery = $forged ? forged_delivery() : next_delivery();
		my $began = time;
		my ($good, $line) = insist(
			"SELECT outcome, event_id, sqlstate FROM gigs.try_ingest_gig_event($delivery->{body_sql}, $delivery->{signature_sql})"
		);

		return if !$good;
		my ($outcome, $event_id, $sqlstate) = split /\|/, $line;
		return refused('try', $sqlstate || $outcome, $delivery) if $forged;
		acknowledge($delivery, $began, 'try', $outcome, $event_id);
	},
	batch => sub {
		my @deliveries = several_deliveries();
		my $bad = chance(0.2) ? int rand @deliveries : -1;

		$deliveries[$bad] = forged_delivery() if $bad >= 0;
		my $began = time;
		my ($good, @lines) = insist(batch_statement(@deliveries));

		return if !$good;
		for my $i (0 .. $#deliveries)
		{
			my ($outcome, $event_id, $sqlstate) = split /\|/, $lines[$i];

			if ($i == $bad)
			{
				refused('batch', $sqlstate || $outcome, $deliveries[$i]);
			}
			else
			{
				acknowledge($deliveries[$i], $began, 'batch', $outcome,
					$event_id);
			}
		}
	},
	newcomers => sub {
		my @deliveries = shuffle(map {
			delivery(uuid($seed, 'new', $from, $newcomers, $_), between(1, 2))
		} 1 .. $nnewcomers);
		my $began = time;
		my ($good, @lines) = insist(batch_statement(@deliveries));

		return if !$good;
		acknowledge($deliveries[$_], $began, 'newcomers',
			(split /\|/, $lines[$_])[ 0, 1 ])
		  for 0 .. $#deliveries;
	},
	inbox => sub {
		my ($good) = insist("INSERT INTO inbox ($inbox_columns) VALUES "
			  . inbox_rows(next_delivery()));
		$tally{'by inbox'}++ if $good;
	},
	inbox_rows => sub {
		my @deliveries = deliveries_in_order() or return;
		my ($good) = insist("INSERT INTO inbox ($inbox_columns) VALUES "
			  . inbox_rows(@deliveries));
		$tally{'by inbox'} += @deliveries if $good;
	},
	copy => sub {
		my @deliveries = deliveries_in_order();
		my ($good) = insist(copy_statement(@deliveries));
		$tally{'by inbox'} += @deliveries if $good;
	},
	backlog => sub {
		insist("INSERT INTO backlog ($inbox_columns) VALUES "
			  . inbox_rows(several_deliveries()));
	},

	# A secret that is good before and after a statement is good for it, and one
	# that was retired before it began is not.
	rotated => sub {
		my $delivery = next_delivery();

		return if $delivery->{name} ne 'rotated';
		my $secrets = q{
			SELECT secret, coalesce(retired_at <= clock_timestamp(), false)
			FROM gigs.gig_subscription_secret WHERE name = 'rotated'
			ORDER BY created_at DESC LIMIT 4};
		my %before = map { split /\|/ } good_lines(insist($secrets));
		my $key = pick(sort keys %before);
		my $signature = text_literal(sign($delivery->{body}, $key));
		my $began = time;
		my ($good, $line) = insist(
			"SELECT outcome, event_id, sqlstate FROM gigs.try_ingest_gig_event($delivery->{body_sql}, $signature)"
		);
		return if !$good;
		my ($outcome, $event_id, $sqlstate) = split /\|/, $line;
		my %after = map { split /\|/ } good_lines(insist($secrets));

		if ($outcome ne 'rejected')
		{
			unexpected('secret that was retired', $key, $line)
			  if $before{$key} eq 't';
			acknowledge($delivery, $began, 'rotated', $outcome, $event_id);
		}
		elsif ($sqlstate ne '28000'
			|| $before{$key} eq 'f' && defined $after{$key} && $after{$key} eq 'f')
		{
			unexpected('secret that is good', $sqlstate, $key);
		}
		else { $tally{refused}++; }
	},

	# Calls of one transaction in any order, which may deadlock.
	disorder => sub {
		my @deliveries = map { next_delivery() } 1 .. between(2, 4);
		my $began = time;

		if (chance(0.3))
		{
			my ($good) = insist_together(copy_statement(@deliveries));

			$tally{'by inbox'} += @deliveries if $good;
			return;
		}
		my ($good, @lines) = insist_together(
			map {
				"SELECT outcome, event_id FROM gigs.try_ingest_gig_event($_->{body_sql}, $_->{signature_sql})"
			} @deliveries);

		return if !$good;
		acknowledge($deliveries[$_], $began, 'transaction',
			split /\|/, $lines[$_])
		  for 0 .. $#deliveries;
	},

	drain => sub {
		# it goes on where it ended
		my $statement = sprintf "CALL gigs.drain_gig_inbox('backlog', batch => %d)",
		  between(1, 30);
		my ($sqlstate) = run($statement);

		if ($sqlstate eq '00000') { $tally{drains}++; }
		elsif (is_to_be_retried($sqlstate)) { change_isolation(); }
		else { unexpected($isolation, $sqlstate, $statement); }
	},
	drain_later => sub { sleep rand 0.05 },

	# What is taken is noted with the time at which it was.
	consume => sub {
		my $take = sprintf q{
			WITH d AS (
				DELETE FROM gigs.gig_change
				WHERE (account_id, gig_id) IN (
					SELECT account_id, gig_id FROM gigs.gig_change
					ORDER BY changed_at
					LIMIT %d
					FOR UPDATE SKIP LOCKED
				)
				RETURNING *, clock_timestamp() AS at
			)
			INSERT INTO taken SELECT account_id, gig_id, event_id, at FROM d
		}, between(1, 20);

		if (chance(0.5)) { insist($take); }
		else
		{
			insist_together($take,
				sprintf('DO $$ BEGIN PERFORM pg_sleep(%f); END $$', rand 0.01));
		}
		$tally{takes}++;
	},
	consume_later => sub { sleep rand 0.03 },

	# The rows are what the log makes them, at any time: nobody can change them
	# while the table is locked.
	rebuild_all => sub {
		my ($good, $before, $result, $after) = insist_together(
			'LOCK TABLE gigs.gig_account_sync IN EXCLUSIVE MODE',
			q{SELECT md5(string_agg(a::text, ',' ORDER BY account_id)) FROM gigs.gig_account_sync AS a},
			'SELECT * FROM gigs.rebuild_gig_sync()',
			q{SELECT md5(string_agg(a::text, ',' ORDER BY account_id)) FROM gigs.gig_account_sync AS a}
		);

		return if !$good;
		unexpected('all rebuilt', $result, 'rows are other ones')
		  if $before ne $after;
		$tally{rebuilds}++;
	},
	# Without that, events that come meanwhile would have it skip their accounts.
	rebuild_all_alone => sub {
		my ($good, $skipped) =
		  insist('SELECT accounts_skipped FROM gigs.rebuild_gig_sync()');

		return if !$good;
		unexpected('all rebuilt', $skipped, 'accounts are skipped')
		  if $skipped > $npruned_accounts;
		$tally{rebuilds}++;
	},
	rebuild_one_alone => sub {
		my ($good, $result) = insist("SELECT * FROM gigs.rebuild_gig_sync('"
			  . pick(@accounts) . "')");

		return if !$good;
		unexpected('one rebuilt', $result, 'it is skipped') if $result ne '1|0';
		$tally{rebuilds}++;
	},
	rebuild_one => sub {
		my $account = pick(@accounts);
		my ($good, $before, $result, $after) = insist_together(
			"SELECT a FROM gigs.gig_account_sync AS a WHERE account_id = '$account' FOR UPDATE",
			"SELECT * FROM gigs.rebuild_gig_sync('$account')",
			"SELECT a FROM gigs.gig_account_sync AS a WHERE account_id = '$account'"
		);

		return if !$good;
		unexpected('one rebuilt', $result, "$before became $after")
		  if $result ne '1|0' || $before ne $after;
		$tally{rebuilds}++;
	},
	# One that is not there, or that is just being created.
	rebuild_new => sub {
		insist("SELECT accounts_rebuilt FROM gigs.rebuild_gig_sync('"
			  . uuid($seed, 'new', int($place) + between(0, 30)) . "')");
		$tally{rebuilds}++;
	},
	rebuild_later => sub { sleep rand 0.3 },

	prune => sub {
		my ($good, $line) = insist(
			sprintf "SELECT * FROM gigs.prune_gig_events('30 days', %d)",
			between(1, 10));

		return if !$good;
		my ($events, $deliveries) = split /\|/, $line;
		$tally{'events pruned'} += $events;
		$tally{'deliveries pruned'} += $deliveries;
	},
	prune_later => sub { sleep rand 0.1 },

	rotate => sub {
		my $key = "key $from-" . $tally{rotations}++;

		insist("DO \$\$ BEGIN PERFORM gigs.add_gig_secret('rotated', '$key'); END \$\$");
		sleep rand 0.05;
		insist("DO \$\$ BEGIN PERFORM gigs.retire_gig_secret('rotated', '$key'); END \$\$");
	});

my %roles = (
	sender => [ (qw(single try batch inbox inbox_rows copy backlog rotated)) x 6, 'rebuild_new' ],
	disorderly => [ qw(single batch disorder disorder inbox) ],
	drain => [qw(drain drain_later)],
	consumer => [qw(consume consume_later)],
	rebuilder => [qw(rebuild_all rebuild_all_alone rebuild_one rebuild_one_alone
		  rebuild_one_alone rebuild_new rebuild_later rebuild_later)],
	upkeep => [qw(prune prune prune_later rotate)]);

my @crew = (('sender') x 10, ('drain') x 2, ('consumer') x 2, 'rebuilder', 'upkeep');

# ---------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------

my $directory = PostgreSQL::Test::Utils::tempdir();

sub work
{
	my ($number, $role, $connection, $direct, $until) = @_;
	my $parent = getppid();
	my @choices = @{ $roles{$role} };

	$worker_name = "$role $number";
	%tally = (deadlocks => 0, nunexpected => 0, unexpected => [], rotations => 0);
	srand($seed + 1000 * $from + $number);
	$place = $from;
	$SIG{ALRM} = sub { die "$worker_name: no answer in $patience s, at: $running\n" };
	open $acks, '>>', "$directory/acks.$number" or die $!;
	open STDERR, '>>', "$directory/errors.$number" or die $!;
	open $errors, '<', "$directory/errors.$number" or die $!;
	my $pid = open2($from_psql, $to_psql, 'psql', '-XAtq', '-d', $connection);

	run("\\set VERBOSITY verbose\nSET client_min_messages = warning");
	run('LOAD \'gigs_webhooks\'');
	run("SET gigs_webhooks.direct_writes = $direct") if $direct ne 'mixed';
	while (time < $until && getppid() == $parent)
	{
		change_isolation() if chance(0.1);
		run('SET gigs_webhooks.direct_writes = ' . pick('on', 'off'))
		  if $direct eq 'mixed' && chance(0.2);
		if ($role eq 'sender'
			&& int(($until - time) / $newcomers_every) != $newcomers)
		{
			$newcomers = int(($until - time) / $newcomers_every);
			$work{newcomers}->();
		}
		$work{ pick(@choices) }->();
	}
	$tally{place} = $place;
	close $to_psql;
	waitpid $pid, 0;
	close $acks or die $!;
	store(\%tally, "$directory/tally.$number") or die;
	return;
}

# Lets all work for a while.  Returns what it came to.
sub round
{
	my ($node, $direct, $duration, @crew) = @_;
	my $connection = $node->connstr('postgres');
	my $until = time + $duration;
	my %pids;
	my %sum = (unexpected => [], deadlocks => 0);

	for my $number (0 .. $#crew)
	{
		unlink "$directory/tally.$number";
		my $pid = fork;
		die "could not fork: $!" if !defined $pid;
		if ($pid == 0)
		{
			# what the parent cleans up is not the child's to clean up
			my $good = eval {
				work($number, $crew[$number], $connection, $direct, $until);
				1;
			};
			print STDERR $@ if !$good;
			POSIX::_exit($good ? 0 : 1);
		}
		$pids{$pid} = $number;
	}

	local $SIG{ALRM} = sub { kill 'KILL', keys %pids };
	alarm $duration + 2 * $patience;
	while (%pids)
	{
		my $pid = wait;

		last if $pid < 0;
		my $number = delete $pids{$pid};
		next if !defined $number;
		if ($? != 0)
		{
			push @{ $sum{unexpected} }, "$crew[$number] $number has failed:\n"
			  . substr slurp_file("$directory/errors.$number"), -2000;
			next;
		}
		my $tally = retrieve("$directory/tally.$number");

		push @{ $sum{unexpected} }, @{ delete $tally->{unexpected} };
		my $place = delete $tally->{place};
		$from = $place if $place > $from;
		$sum{$_} += $tally->{$_} for keys %$tally;
	}
	alarm 0;
	$from = int($from) + 100;
	return \%sum;
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

# A deadlock is to be found before it gets resolved by chance.
my $node = start_node('stress', "deadlock_timeout = '10ms'",
	'max_connections = 40');

$node->safe_psql('postgres', <<'SQL');
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'always');
	SELECT gigs.create_gig_subscription('rotated', 'https://example.com/', 'always');

	CREATE TABLE inbox (
		id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		account_id uuid,
		body_digest bytea,
		began timestamptz DEFAULT clock_timestamp(),
		body bytea,
		signature text,
		outcome text,
		error text
	);
	CREATE TABLE backlog (LIKE inbox INCLUDING ALL);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();

	CREATE TABLE taken (account_id uuid, gig_id uuid, event_id bigint, at timestamptz);
	CREATE TABLE acks (
		account_id uuid,
		body_digest bytea,
		began double precision,
		door text,
		outcome text,
		event_id bigint
	);
SQL

# What was delivered long before: of some accounts so long that their events are
# to be pruned, of the others so long that only the deliveries are.
{
	my @before;

	for my $account (@accounts)
	{
		push @before, map { delivery($account, -$_) } 1 .. $nold;
	}
	my $old_accounts = join ', ', map {
		my $account = uuid($seed, 'pruned', $_);

		push @before, map { delivery($account, $_) } 1 .. 3;
		"'$account'";
	} 1 .. $npruned_accounts;
	my @calls = map {
		"SELECT FROM gigs.ingest_gig_event($_->{body_sql}, $_->{signature_sql});"
	} @before;
	$node->safe_psql('postgres', join "\n", 'BEGIN;', @calls, qq{
		UPDATE gigs.gig_delivery SET first_at = first_at - interval '10 days';
		UPDATE gigs.gig_event_log SET received_at = received_at - interval '100 days'
		WHERE account_id IN ($old_accounts);
		SELECT FROM gigs.rebuild_gig_sync();
		DELETE FROM gigs.gig_change;
		CREATE TABLE before AS SELECT account_id, body_digest, event_id FROM gigs.gig_delivery;
		COMMIT; });
}

# ---------------------------------------------------------------------------
# All at once
# ---------------------------------------------------------------------------

sub report
{
	my ($title, $sum) = @_;
	my @unexpected = @{ delete $sum->{unexpected} };

	is(delete $sum->{deadlocks}, 0, "$title: nobody deadlocks");
	is(scalar @unexpected, 0, "$title: nothing fails")
	  or diag join "\n", @unexpected[ 0 .. ($#unexpected > 4 ? 4 : $#unexpected) ];
	delete $sum->{$_} for qw(nunexpected rotations);
	note "$title: " . join ', ', map { "$_: $sum->{$_}" } sort keys %$sum;
	return;
}

my $log_before = -s $node->logfile;

for my $direct ('on', 'off', 'mixed')
{
	report("direct writes $direct",
		round($node, $direct, $seconds * 0.27, @crew));
}
ok(substr(slurp_file($node->logfile), $log_before) !~ /deadlock detected/,
	'the server has seen no deadlock');

# Whoever makes several calls in one transaction may deadlock with others who
# do, and then even a single call may be the one that PostgreSQL ends.
$may_deadlock = 1;
report('several calls in one transaction',
	round($node, 'mixed', $seconds * 0.19, ('disorderly') x 16));

# ---------------------------------------------------------------------------
# What it has come to
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "CALL gigs.drain_gig_inbox('backlog')");
$node->safe_psql('postgres', join '', map { "\\copy acks FROM '$_'\n" } glob "$directory/acks.*");
$node->safe_psql('postgres', <<'SQL');
	INSERT INTO acks
	SELECT account_id, body_digest, EXTRACT(epoch FROM began), 'inbox', outcome FROM inbox
	UNION ALL
	-- when these were applied, only the drain knows
	SELECT account_id, body_digest, NULL, 'backlog', outcome FROM backlog;

	CREATE TABLE history AS
	SELECT h.*, substr(sha256(l.body), 1, 16) AS body_digest
	FROM gigs.gig_event_history AS h JOIN gigs.gig_event_log AS l USING (event_id);
	CREATE UNIQUE INDEX ON history (event_id);
	ANALYZE;
SQL

# Expects that a query finds nothing.
sub finds_none
{
	my ($title, $query) = @_;
	my $found = $node->safe_psql('postgres',
		"SELECT f::text FROM ($query) AS f LIMIT 5");

	is($found, '', $title);
	return;
}

finds_none('whatever was acknowledged is good',
	"SELECT * FROM acks WHERE outcome NOT IN ('applied', 'stale', 'duplicate') OR outcome IS NULL");
finds_none('of every body, one delivery is the event', q{
	SELECT account_id, body_digest, count(*) FILTER (WHERE outcome <> 'duplicate') FROM acks
	GROUP BY 1, 2 HAVING count(*) FILTER (WHERE outcome <> 'duplicate') <> 1});
finds_none('every body has one event in the log', q{
	SELECT * FROM
		(SELECT DISTINCT account_id, body_digest, 1 AS events FROM acks) AS a
		FULL JOIN (
			SELECT h.account_id, h.body_digest, count(*) AS events
			FROM history AS h
			WHERE NOT EXISTS (SELECT FROM before AS b WHERE b.event_id = h.event_id)
			GROUP BY 1, 2
		) AS h USING (account_id, body_digest, events)
	WHERE a.* IS NULL OR h.* IS NULL});
finds_none('every delivery is counted once', q{
	SELECT * FROM
		(SELECT account_id, body_digest, count(*) AS deliveries FROM acks GROUP BY 1, 2) AS a
		FULL JOIN (
			SELECT d.account_id, d.body_digest, d.deliveries::bigint FROM gigs.gig_delivery AS d
			WHERE NOT EXISTS (SELECT FROM before AS b WHERE b.event_id = d.event_id)
		) AS d USING (account_id, body_digest, deliveries)
	WHERE a.* IS NULL OR d.* IS NULL});
finds_none('whoever was told of an event was told the one of the log', q{
	SELECT a.* FROM acks AS a LEFT JOIN history AS h USING (event_id, account_id, body_digest)
	WHERE a.event_id IS NOT NULL AND h.event_id IS NULL});
finds_none('the outcome was told to whoever brought it', q{
	SELECT account_id, a.duplicates, s.duplicates
	FROM (
		SELECT account_id, count(*) FILTER (WHERE outcome = 'duplicate') AS duplicates
		FROM acks GROUP BY 1
	) AS a
	FULL JOIN gigs.gig_account_sync AS s USING (account_id)
	WHERE coalesce(a.duplicates, 0) <> coalesce(s.duplicates, -1)});
finds_none('the log is in the order of application', q{
	SELECT * FROM (
		SELECT event_id, received_at, lag(received_at) OVER (PARTITION BY account_id ORDER BY event_id) AS before
		FROM history
		WHERE event_id NOT IN (SELECT event_id FROM before)
	) AS h WHERE received_at < before});

# The rules told again, in SQL.  Of accounts that were pruned the log doesn't
# reach back far enough.
my $pruned = join ', ', map { "'" . uuid($seed, 'pruned', $_) . "'" } 1 .. $npruned_accounts;

finds_none('every account is what its log makes it', qq{
	WITH earlier AS (
		SELECT
			h.*,
			coalesce(bool_or(event = 'gigs.fully_synced') OVER before, false) AS full_before,
			max(days_synced) OVER before AS days_before
		FROM history AS h
		WHERE account_id NOT IN ($pruned)
		WINDOW before AS (
			PARTITION BY account_id ORDER BY event_id
			ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
		)
	), events AS (
		SELECT
			*,
			event = 'gigs.partially_synced'
				AND (full_before OR coalesce(days_synced < days_before, false)) AS stale
		FROM earlier
	), told AS (
		SELECT
			account_id,
			(array_agg(user_id ORDER BY event_id DESC) FILTER (WHERE NOT stale))[1] AS user_id,
			(CASE
				WHEN bool_or(event = 'gigs.fully_synced') THEN 'fully_synced'
				WHEN bool_or(event = 'gigs.partially_synced') THEN 'partially_synced'
				ELSE 'unknown'
			END)::gigs.gig_sync_state AS state,
			max(days_synced) AS days_synced,
			(array_agg(available_from ORDER BY event_id DESC) FILTER (WHERE NOT stale))[1] AS available_from,
			(array_agg(available_to ORDER BY event_id DESC) FILTER (WHERE NOT stale))[1] AS available_to,
			(array_agg(available_count ORDER BY event_id DESC) FILTER (WHERE NOT stale))[1] AS available_count,
			coalesce(sum(changed_count) FILTER (WHERE event = 'gigs.added'), 0) AS added_total,
			coalesce(sum(changed_count) FILTER (WHERE event = 'gigs.updated'), 0) AS updated_total,
			coalesce(sum(changed_count) FILTER (WHERE event = 'gigs.removed'), 0) AS removed_total,
			count(*) AS events,
			(array_agg(received_at ORDER BY event_id))[1] AS first_event_at,
			(array_agg(received_at ORDER BY event_id)
				FILTER (WHERE event = 'gigs.partially_synced' AND NOT full_before))[1] AS partially_synced_at,
			(array_agg(received_at ORDER BY event_id)
				FILTER (WHERE event = 'gigs.fully_synced'))[1] AS fully_synced_at,
			(array_agg(received_at ORDER BY event_id DESC)
				FILTER (WHERE event IN ('gigs.added', 'gigs.updated', 'gigs.removed')))[1] AS refreshed_at,
			(array_agg(event ORDER BY event_id DESC))[1] AS last_event,
			(array_agg(received_at ORDER BY event_id DESC))[1] AS last_event_at
		FROM events
		GROUP BY 1
	), kept AS (
		SELECT
			account_id, user_id, state, days_synced, available_from, available_to, available_count,
			added_total, updated_total, removed_total, events, first_event_at, partially_synced_at,
			fully_synced_at, refreshed_at, last_event, last_event_at
		FROM gigs.gig_account_sync
		WHERE account_id NOT IN ($pruned)
	)
	(SELECT 'told', * FROM (TABLE told EXCEPT TABLE kept) AS t)
	UNION ALL
	(SELECT 'kept', * FROM (TABLE kept EXCEPT TABLE told) AS k)});

my $rows = 'SELECT a::text FROM gigs.gig_account_sync AS a ORDER BY account_id';
my @before = split /\n/, $node->safe_psql('postgres', $rows);
my ($rebuilt, $skipped) = split /\|/,
  $node->safe_psql('postgres', 'SELECT * FROM gigs.rebuild_gig_sync()');
is($rebuilt + $skipped, scalar @before, 'all accounts are rebuilt');
cmp_ok($skipped, '<=', $npruned_accounts, '... but those that were pruned');
is( first_difference([ split /\n/, $node->safe_psql('postgres', $rows) ], \@before),
	'', '... and are what they were');

# The consumer gets to know of every event, and of every redelivery: the gig is
# still there to be taken, or has been taken since.
finds_none('no change is lost', q{
	SELECT h.* FROM (
		SELECT account_id, gig_id, max(event_id) AS event_id
		FROM history AS h, unnest(h.changed_gigs) AS gig_id
		WHERE event_id NOT IN (SELECT event_id FROM before)
		GROUP BY 1, 2
	) AS h
	WHERE NOT EXISTS (
		SELECT FROM gigs.gig_change AS c
		WHERE (c.account_id, c.gig_id, c.event_id) = (h.account_id, h.gig_id, h.event_id)
	) AND NOT EXISTS (
		SELECT FROM taken AS t
		WHERE (t.account_id, t.gig_id, t.event_id) = (h.account_id, h.gig_id, h.event_id)
	)});
finds_none('no redelivery is, either', q{
	SELECT a.* FROM (
		SELECT h.account_id, gig_id, max(a.began) AS began
		FROM acks AS a
		JOIN gigs.gig_delivery AS d USING (account_id, body_digest)
		JOIN history AS h ON h.event_id = d.event_id,
		unnest(h.changed_gigs) AS gig_id
		GROUP BY 1, 2
	) AS a
	LEFT JOIN (
		SELECT account_id, gig_id, EXTRACT(epoch FROM max(at)) AS at FROM taken GROUP BY 1, 2
	) AS t USING (account_id, gig_id)
	LEFT JOIN gigs.gig_change AS c USING (account_id, gig_id)
	WHERE c.gig_id IS NULL AND (t.at IS NULL OR t.at < a.began)});
finds_none('a pending change is of the event that it names', q{
	SELECT c.* FROM gigs.gig_change AS c
	LEFT JOIN history AS h ON h.event_id = c.event_id
		AND h.account_id = c.account_id AND c.gig_id = ANY (h.changed_gigs)
		-- a redelivery brings it back to be fetched
		AND c.change IN (h.event, 'gigs.updated')
	WHERE h.event_id IS NULL});

# ---------------------------------------------------------------------------
# The tables are sound
# ---------------------------------------------------------------------------

SKIP:
{
	my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

	skip 'no amcheck', 1
	  if $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") == 0;
	$node->safe_psql('postgres', 'CREATE EXTENSION amcheck');
	$node->safe_psql('postgres', q{
		SELECT bt_index_check(c.oid, true)
		FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam
		WHERE c.relnamespace = 'gigs'::regnamespace AND a.amname = 'btree'});
	pass('indexes have all rows');
	finds_none('tables are sound', q{
		SELECT c.relname, v.* FROM pg_class AS c, verify_heapam(c.oid) AS v
		WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind = 'r'})
	  if $version >= 140000;
}

# A run in which nothing happened would have shown nothing.
{
	my ($acks, $bodies, $duplicates, $taken) = split /\|/, $node->safe_psql(
		'postgres', q{
		SELECT count(*), count(DISTINCT (account_id, body_digest)),
			count(*) FILTER (WHERE outcome = 'duplicate'), (SELECT count(*) FROM taken)
		FROM acks});

	note "$acks deliveries of $bodies bodies, $duplicates duplicates, $taken changes taken";
	cmp_ok($bodies, '>', 500, 'there were events');
	cmp_ok($duplicates, '>', $bodies, '... and more redeliveries');
	cmp_ok($taken, '>', 100, '... and changes that were taken');
}

diag "GIGS_SEED=$seed" if !Test::More->builder->is_passing;
$node->stop;
done_testing();
