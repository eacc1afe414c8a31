# The server is killed at its work, again and again, and nothing that it has
# acknowledged is lost, nothing is there by halves.
#
# Clients ingest through all doors, each noting what it asks for and what has
# been acknowledged to it in a file of its own.  The server is killed with
# SIGKILL or stopped immediately, recovers, and has to have all of it: what was
# still in flight may have gone either way, but as a whole.
#
# GIGS_KILLS is how often all of it is killed with SIGKILL; twice here, 60 times
# with GIGS_LONG set.  As often one process is, or it is stopped immediately.
# All dice are thrown from one seed, which a failure prints and GIGS_SEED
# repeats; when exactly the server is hit depends on the machine, too.

use strict;
use warnings;

use Digest::MD5 qw(md5 md5_hex);
use FindBin;
use IO::Handle;
use POSIX ();
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);
use GigWire;

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
my $kills = $ENV{GIGS_KILLS} || ($ENV{GIGS_LONG} ? 60 : 2);
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

my @clients = ('a' .. 'd');
my $name = 'crash';
my $secret = 'does not change';

srand unpack 'L', md5("$seed");
note "GIGS_SEED=$seed";

# ---------------------------------------------------------------------------
# Events
# ---------------------------------------------------------------------------

sub uuid { return join '-', unpack 'A8 A4 A4 A4 A12', md5_hex("$seed $_[0]") }

# An event is all in its id, SENDER.ROUND.NUMBER: whoever knows that can tell
# the event, down to the last byte.  Some accounts are everybody's all the
# time, others are new to all, and many have one event only.
sub event_of
{
	my ($id) = @_;
	my ($sender, $round) = split /\./, $id;
	my @dice = unpack 'C*', md5("$seed event $id");
	my $account =
	    $dice[0] < 140 ? 'of all times ' . $dice[1] % 6
	  : $dice[0] < 200 ? "of round $round " . $dice[1] % 12
	  : "of $id";
	my $kind = (
		('added') x 3, ('updated') x 4, ('removed') x 3,
		'partially_synced', 'fully_synced')[ $dice[2] % 12 ];
	my %event = (
		account => uuid("account $account"),
		kind => "gigs.$kind",
		gigs => []);
	my @data = (
		qq("account":"$event{account}"),
		# an account seldom changes its user
		sprintf('"user":"%s"',
			uuid("user of account $account" . ($dice[3] < 8 ? $dice[4] % 3 : ''))),
		'"available_from":'
		  . ($dice[5] < 30 ? 'null' : sprintf '"2024-%02d-01T00:00:00Z"', 1 + $dice[5] % 12),
		sprintf('"available_to":"2025-01-02T03:04:05.%03dZ"', $dice[6]),
		sprintf('"available_count":%d', $dice[7] * 256 + $dice[8]));

	if ($kind eq 'partially_synced')
	{
		push @data, sprintf '"days_synced":%d', 1 + $dice[9] % 60;
	}
	elsif ($kind ne 'fully_synced')
	{
		push @data, sprintf '"%s_count":%d', $kind, $dice[9];
	}
	if ($kind eq 'updated' || $kind eq 'removed')
	{
		$event{gigs} =
		  [ map { uuid("gig $account " . $dice[ 10 + $_ ] % 12) } 1 .. $dice[10] % 5 ];
		push @data, qq("${kind}_gigs":[)
		  . join(',', map { qq("$_") } @{ $event{gigs} }) . ']';
	}
	# one that is stored out of line
	push @data, '"padding":"' . join('', map { md5_hex("$id $_") } 1 .. 150) . '"'
	  if $dice[15] < 6;
	$event{body} = sprintf '{"event":"gigs.%s","name":"%s","id":"%s","data":{%s}}',
	  $kind, $name, $id, join(',', @data);
	return \%event;
}

# What an item is sent as: the event's body, and a signature that is good
# unless the item is a forgery.
sub literals
{
	my ($item) = @_;
	my $body = event_of($item->{id})->{body};

	return (
		bytea_literal($body),
		text_literal(sign($body, $item->{mark} eq '!' ? 'a guess' : $secret)) . '::text');
}

# ---------------------------------------------------------------------------
# A client
# ---------------------------------------------------------------------------
#
# Its notes are lines of columns between tabs:
#
#   C UNIT ITEM...     is going to do this, in one transaction
#   U UNIT ITEM...     is going to do this, and to undo it
#   D UNIT TABLE       is going to drain a backlog
#   N UNIT NUMBER BAD  so many of its rows have been, of which so many were bad
#   P UNIT             the server has prepared it, and is asked to commit it
#   H UNIT             has asked for it and not waited for an answer
#   A UNIT OUTCOME...  the server has acknowledged it
#   R UNIT SQLSTATE    the server has rolled it back
#   X MESSAGE          something is wrong
#
# An item is a letter for the door (d for a function, x for the inbox with the
# trigger, b for a backlog), a mark (+ for an event that nobody has sent before,
# ! for a forgery, : for others), and the event's id.  An outcome is followed by
# the event_id, if that has been told.

my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $node = PostgreSQL::Test::Cluster->new('crash');
my $round = 0;
my %sent = map { $_ => [] } @clients;    # ids of former rounds

sub notes_of { return "$tempdir/client_$_[0]_$round" }

my ($client, $wire_options, $wire, $notes, $progress, $unit, $units, $events);

sub note_down
{
	my $line = join "\t", @_;

	$line =~ s/\n/ /g;
	$line .= "\n";
	syswrite($notes, $line) == length $line
	  or die "could not write notes: $!";
	return;
}

# Tells the parent how many events have been acknowledged.
sub acknowledged
{
	my ($n) = @_;

	syswrite $progress, '.' x $n if $n > 0;
	return;
}

# The server's answer; the client ends with its server.
sub query
{
	my $answer = $wire->query(@_);

	POSIX::_exit(0) if !$answer;
	return $answer;
}

# Asks, and is gone before there is an answer.
sub ask_and_leave
{
	my ($sql, $copy) = @_;

	note_down('H', $unit);
	$wire->message('Q', "$sql\0")
	  && (!defined $copy || $wire->message('d', $copy) && $wire->message('c', ''))
	  or POSIX::_exit(0);
	$wire = eval { GigWire->connect($node, $wire_options) };
	POSIX::_exit(0) if !$wire;
	return;
}

sub new_id { return join '.', $client, $round, ++$events }

# What is sent next: something new, something that all send, something that
# was sent before, whatever came of it, or a forgery.
sub next_item
{
	my ($door, $must_be_new) = @_;
	my $dice = $must_be_new ? 1 : rand;
	my $mine = $sent{$client};
	my %item = (door => $door, mark => ':');

	if ($dice < 0.03)
	{
		@item{qw(mark id)} = ('!', new_id());
	}
	elsif ($dice < 0.2 && @$mine)
	{
		my $back = between(1, chance(0.7) && @$mine > 30 ? 30 : scalar @$mine);

		$item{id} = $mine->[ -$back ];
	}
	elsif ($dice < 0.3)
	{
		$item{id} = join '.', 'all', $round, between(1, 40);
	}
	else
	{
		@item{qw(mark id)} = ('+', new_id());
		push @$mine, $item{id};
	}
	return \%item;
}

# Of several items one is new, so that one can tell whether they are there.
sub next_items
{
	my ($door, $n, $must_be_new) = @_;

	return shuffled(map { next_item($door, $_ == 1 && ($n > 1 || $must_be_new)) } 1 .. $n);
}

sub insert
{
	my ($table, $place, @items) = @_;

	return "INSERT INTO $table (unit, place, body, signature) VALUES "
	  . join(', ', map { sprintf "('%s', %d, %s, %s)", $unit, $place++, literals($_) } @items);
}

# A statement for each door: its items, its SQL, and the rows of a COPY.  A new
# item may be wanted among them; the place is that of the first item in the
# unit.
my %doors = (
	ingest => sub {
		my ($must_be_new) = @_;
		my $item;

		# a forgery would be an error
		do { $item = next_item('d', $must_be_new) } until $item->{mark} ne '!';
		return {
			items => [$item],
			sql => sprintf('SELECT gigs.ingest_gig_event(%s, %s)', literals($item))
		};
	},
	try => sub {
		my $item = next_item('d', @_);

		return {
			items => [$item],
			sql => sprintf('SELECT outcome, event_id FROM gigs.try_ingest_gig_event(%s, %s)',
				literals($item))
		};
	},
	batch => sub {
		my ($must_be_new) = @_;
		my @items = next_items('d', between(2, chance(0.05) ? 300 : 25), $must_be_new);
		my @literals = map { [ literals($_) ] } @items;

		return {
			items => \@items,
			sql => sprintf(
				'SELECT outcome, event_id FROM gigs.ingest_gig_events(ARRAY[%s], ARRAY[%s]) ORDER BY ord',
				join(',', map { $_->[0] } @literals),
				join(',', map { $_->[1] } @literals))
		};
	},
	insert => sub {
		my ($must_be_new, $place) = @_;
		my @items = next_items('x', between(1, 6), $must_be_new);

		return {
			items => \@items,
			sql => insert('inbox', $place, @items) . ' RETURNING outcome'
		};
	},
	copy => sub {
		my ($must_be_new, $place) = @_;
		my @items = next_items('x', between(1, 20), $must_be_new);

		return {
			items => \@items,
			sql => 'COPY inbox (unit, place, body, signature) FROM STDIN',
			copy => join '',
			map {
				my $body = event_of($_->{id})->{body};

				join("\t", $unit, $place++, '\\\\x' . unpack('H*', $body),
					sign($body, $_->{mark} eq '!' ? 'a guess' : $secret))
				  . "\n"
			} @items
		};
	},
	backlog => sub {
		my ($must_be_new, $place) = @_;
		my $table = chance(0.5) ? 'backlog' : "backlog_$client";
		my @items = next_items('b', between(1, 15), $must_be_new);

		return {
			items => \@items,
			sql => insert($table, $place, @items)
		};
	});
my @door_names = sort keys %doors;

sub as_noted { my ($item) = @_; return join '', @$item{qw(door mark id)} }

# Runs a statement.  Returns its outcomes, as many as items, or nothing if it
# failed; then that is noted.
sub run_step
{
	my ($step) = @_;
	my $answer = query($step->{sql}, copy => $step->{copy});

	if (defined $answer->{sqlstate})
	{
		note_down('R', $unit, "$answer->{sqlstate} $answer->{message}");
		return;
	}
	return map {
		my $row = $answer->{rows}[$_];

		$row ? join ' ', grep { defined } @$row : '-';
	} 0 .. $#{ $step->{items} };
}

sub finish_unit
{
	my ($items, $outcomes) = @_;

	note_down('A', $unit, @$outcomes);
	acknowledged(scalar grep { $_->{door} ne 'b' && $_->{mark} ne '!' } @$items);
	return;
}

sub single_statement
{
	my ($leaves) = @_;
	my $step = $doors{ pick(@door_names) }->(0, 0);

	note_down('C', $unit, map { as_noted($_) } @{ $step->{items} });
	return ask_and_leave(@$step{qw(sql copy)}) if $leaves;
	my @outcomes = run_step($step) or return;
	finish_unit($step->{items}, \@outcomes);
	return;
}

# Several statements, some of them undone, in a transaction that may be undone.
sub transaction
{
	my ($leaves) = @_;
	my @steps = { sql => pick('BEGIN', 'BEGIN', 'BEGIN', 'BEGIN ISOLATION LEVEL REPEATABLE READ') };
	my @items;
	my $undo = chance(0.1);
	my @outcomes;

	for (1 .. between(2, 5))
	{
		if (chance(0.15))
		{
			push @steps, { sql => 'SAVEPOINT s' },
			  { %{ $doors{ pick(@door_names) }->(0, 1000) }, undone => 1 },
			  { sql => 'ROLLBACK TO s' };
			next if @items;
		}
		my $step = $doors{ pick(@door_names) }->(!@items, scalar @items);

		push @items, @{ $step->{items} };
		push @steps,
		  chance(0.15)
		  ? ({ sql => 'SAVEPOINT s' }, $step, { sql => 'RELEASE s' })
		  : $step;
	}

	note_down($undo ? 'U' : 'C', $unit, map { as_noted($_) } @items);
	for my $step (@steps)
	{
		if (!$step->{items})
		{
			query($step->{sql});
			next;
		}
		my @of_step = run_step($step);

		if (!@of_step)
		{
			query('ROLLBACK');
			return;
		}
		push @outcomes, @of_step if !$step->{undone};
	}
	if ($undo)
	{
		query('ROLLBACK');
		note_down('R', $unit, 'as told');
		return;
	}
	return ask_and_leave('COMMIT') if $leaves;
	if (chance(0.2))
	{
		die 'could not prepare'
		  if query("PREPARE TRANSACTION '$unit'")->{tag} ne 'PREPARE TRANSACTION';
		note_down('P', $unit);
		select undef, undef, undef, rand 0.01 if chance(0.3);
		die 'could not commit what was prepared'
		  if query("COMMIT PREPARED '$unit'")->{tag} ne 'COMMIT PREPARED';
	}
	elsif (query('COMMIT')->{tag} ne 'COMMIT')
	{
		die 'could not commit';
	}
	finish_unit(\@items, \@outcomes);
	return;
}

sub drain
{
	my ($leaves) = @_;
	my $table = chance(0.5) ? 'backlog' : "backlog_$client";
	my $call = "CALL gigs.drain_gig_inbox('$table', batch => " . between(3, 30) . ')';
	my $drained = 0;

	note_down('D', $unit, $table);
	return ask_and_leave($call) if $leaves;
	my $answer = query(
		$call,
		on_notice => sub {
			my ($n, $rejected) =
			  $_[0] =~ /^rows drained from "$table": (\d+), rejected: (\d+)$/
			  or return;

			note_down('N', $unit, $n, $rejected);
			acknowledged($n - $rejected - $drained);
			$drained = $n - $rejected;
		});
	if (defined $answer->{sqlstate})
	{
		note_down('R', $unit, "$answer->{sqlstate} $answer->{message}");
	}
	else
	{
		note_down('A', $unit);
	}
	return;
}

sub ingest_until_the_server_dies
{
	my $parent = getppid;

	# what was left in the backlogs comes first
	for ($units = 1;; $units++)
	{
		my $mine = $sent{$client};
		my $known = @$mine;
		my $leaves = chance(0.05);
		my $dice = rand;

		last if getppid != $parent;
		$unit = join '.', $client, $round, $units;
		if ($units == 1 || $dice < 0.1)
		{
			drain($leaves);
		}
		elsif ($dice < 0.35)
		{
			transaction($leaves);
		}
		else
		{
			single_statement($leaves);
		}
		# Only if they aren't sent again can one tell, in the end, whether what
		# was not waited for has been done.
		$#$mine = $known - 1 if $leaves;
	}
	return;
}

# Somebody who looks after the database meanwhile.
sub maintain_until_the_server_dies
{
	my $parent = getppid;
	my @tables = map { "gigs.$_" } qw(gig_event_log gig_delivery gig_account_sync gig_change);

	while (getppid == $parent)
	{
		my $table = pick(@tables);
		my $sql = pick(
			'CHECKPOINT',
			'CHECKPOINT',
			"VACUUM $table",
			"VACUUM (FREEZE, ANALYZE) $table",
			"ANALYZE $table",
			"REINDEX TABLE $table",
			"SELECT brin_summarize_new_values('gigs.gig_event_log_received_at_idx')",
			'VACUUM inbox',
			'VACUUM backlog',
			'SELECT * FROM gigs.rebuild_gig_sync()',
			"SELECT * FROM gigs.rebuild_gig_sync('" . uuid('account of all times ' . between(0, 5)) . "')");
		my $answer = query($sql);

		note_down('X', "$answer->{sqlstate} $answer->{message}, in: $sql")
		  if defined $answer->{sqlstate} && $answer->{sqlstate} !~ /^(40P01|40001)$/;
		# everything that it does has WAL written, which is to be lost at times
		select undef, undef, undef, rand 0.15;
	}
	return;
}

# ---------------------------------------------------------------------------
# The server, and how it dies
# ---------------------------------------------------------------------------

# Small segments, so that checkpoints are hit, too.  Only a machine that fails
# loses what isn't synced: so fsync stays off, as it is in all tests.
$node->init(extra => [ '--encoding=UTF8', '--locale=C', '--data-checksums', '--wal-segsize=1' ]);
$node->append_conf(
	'postgresql.conf', join "\n",
	'max_prepared_transactions = 8',
	'restart_after_crash = on',
	'full_page_writes = on',
	'min_wal_size = 2MB',
	'max_wal_size = 3MB',
	'checkpoint_timeout = 30s',
	'wal_buffers = 1MB',
	'wal_writer_delay = 10s',
	'bgwriter_delay = 10ms',
	'autovacuum = on',
	'autovacuum_naptime = 1s',
	'autovacuum_vacuum_cost_delay = 0',
	"deadlock_timeout = '10ms'",
	'log_statement = none',
	'log_min_messages = fatal',
	'');
start_server();

my $inbox_columns = 'unit text, place int, body bytea, signature text, outcome text, error text';
my @backlogs = ('backlog', map { "backlog_$_" } @clients);

$node->safe_psql(
	'postgres', qq{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('$name', 'https://example.com/', '$secret');
	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, $inbox_columns);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
} . join '', map {
	qq{
	CREATE TABLE $_ (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, $inbox_columns);
	CREATE INDEX ON $_ (id) WHERE outcome IS NULL;
	}
} @backlogs);

my $admin = GigWire->connect($node);
my $version = $admin->value('SHOW server_version_num');
my $amcheck =
  $admin->value("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'");

$admin->rows('CREATE EXTENSION amcheck') if $amcheck;

# With a small cache pages are written all the time, and WAL before them; with a
# large one nobody but a commit or a checkpoint writes anything, and there is
# all the more to be lost or replayed.
sub start_server
{
	$node->append_conf(
		'postgresql.conf', join "\n",
		pick("shared_buffers = 1MB\nbgwriter_lru_maxpages = 100",
			"shared_buffers = 32MB\nbgwriter_lru_maxpages = 0"),
		'wal_level = ' . pick('minimal', 'replica', 'logical'),
		'wal_compression = ' . pick('on', 'off'),
		'');
	$node->start;
	return;
}

sub postmaster_pid
{
	open my $file, '<', $node->data_dir . '/postmaster.pid'
	  or die "could not open postmaster.pid: $!";
	my $pid = <$file>;
	close $file;
	chomp $pid;
	return $pid;
}

# The living processes, and whose children they are.
sub processes
{
	my %parent_of;

	if (-d '/proc/self')
	{
		for my $path (glob '/proc/[0-9]*/stat')
		{
			# it may have gone by now
			open my $file, '<', $path or next;
			my ($pid, $state, $parent) = (<$file> || '') =~ /^(\d+) \(.*\) (\S) (\d+) /s or next;

			$parent_of{$pid} = $parent if $state ne 'Z' && $state ne 'X';
		}
		return %parent_of;
	}
	for (`ps -A -o pid= -o ppid= -o state=`)
	{
		my ($pid, $parent, $state) = split;

		$parent_of{$pid} = $parent if $state !~ /^Z/;
	}
	return %parent_of;
}

sub wait_for
{
	my ($what, $condition) = @_;

	for (1 .. $timeout * 200)
	{
		return if $condition->();
		select undef, undef, undef, 0.005;
	}
	die "timed out waiting for $what";
}

# Whether a process, which is a child of ours or of the server's, stands still.
sub is_stopped
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return `ps -o state= -p $pid` =~ /^T/;
	return (<$file> || '') =~ /^\d+ \(.*\) T /s;
}

# The WAL writer writes nearly everything soon after, and so would hide that a
# commit has not.  An orderly end would wait for it.  It must not be stopped at
# its work, because that it does with a lock that every commit needs.
sub stop_wal_writer
{
	my $pid = $admin->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");

	wait_for(
		'the WAL writer to be idle',
		sub {
			my $freed = 0;

			kill 'STOP', $pid or die 'there is no WAL writer';
			wait_for('the WAL writer to stop', sub { is_stopped($pid) });
			# even a look at it may have to wait for what it is at
			local $SIG{ALRM} = sub { $freed = kill 'CONT', $pid };
			alarm 1;
			my $idle = $admin->value(
				"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event = 'WalWriterMain'");
			alarm 0;
			return 1 if $idle && !$freed;
			kill 'CONT', $pid;
			return 0;
		});
	return;
}

# The postmaster is stopped, so that it starts no process unseen.
sub kill_all
{
	my $postmaster = postmaster_pid();
	my @children;

	kill 'STOP', $postmaster;
	wait_for('the postmaster to stop', sub { is_stopped($postmaster) });
	my %parent_of = processes();
	@children = shuffled(grep { $parent_of{$_} == $postmaster } sort keys %parent_of);
	if (chance(0.5))
	{
		$node->kill9;
		kill 'KILL', @children;
	}
	else
	{
		kill 'KILL', @children;
		$node->kill9;
	}
	wait_for(
		'the server\'s processes to be gone',
		sub {
			%parent_of = processes();
			return !grep { $parent_of{$_} } $postmaster, @children;
		});
	# A zombie, which in a container may stay one, would be taken for alive.
	unlink $node->data_dir . '/postmaster.pid',
	  $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	return;
}

# Returns when the postmaster has noticed it, and is ending all sessions.
sub kill_one
{
	my $kind = chance(0.75) ? "= 'client backend'" : "<> 'client backend'";
	my @pids = map { $_->[0] } $admin->rows(
		"SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type $kind");

	# some may have ended by themselves meanwhile
	for my $pid (shuffled(@pids))
	{
		next if !kill 'KILL', $pid;
		for (1 .. 1000)
		{
			return if !$admin->query('SELECT 1');
			select undef, undef, undef, 0.002;
		}
	}
	die 'the postmaster does not mind';
}

my %ways_to_die = (
	'all killed' => sub { kill_all(); start_server(); return },
	'one killed' => sub { kill_one(); return },
	'one killed, then all' => sub {
		kill_one();
		select undef, undef, undef, rand 0.15;
		kill_all();
		start_server();
		return;
	},
	'stopped immediately' => sub { $node->stop('immediate'); start_server(); return });

# ---------------------------------------------------------------------------
# A round of work, and its end
# ---------------------------------------------------------------------------

my %children;

sub start_child
{
	my ($who, $writer, $options, $work) = @_;
	my $pid = fork;

	die "could not fork: $!" if !defined $pid;
	if ($pid)
	{
		$children{$pid} = $who;
		return;
	}

	# The child must not come to the ends of its parent's.
	local $SIG{__DIE__} = 'DEFAULT';
	my $done = eval {
		srand unpack 'L', md5("$seed $who $round");
		$client = $who;
		$progress = $writer;
		$events = 0;
		$wire_options = $options;
		open $notes, '>>', notes_of($who) or die "could not write notes: $!";
		$wire = GigWire->connect($node, $options);
		$work->();
		1;
	};
	note_down('X', $@) if !$done && $notes;
	POSIX::_exit($done ? 0 : 1);
}

# Lets the clients work until so many events have been acknowledged, and ends
# it.  Returns when all of them have lost their server and that is up again.
sub work_and_die
{
	my ($wanted, $way, $options) = @_;
	my $seen = 0;

	pipe my $reader, my $writer or die "could not make a pipe: $!";
	STDOUT->flush;
	start_child($_, $writer, $options, \&ingest_until_the_server_dies) for @clients;
	start_child('z', $writer, $options, \&maintain_until_the_server_dies);
	close $writer;

	while ($seen < $wanted)
	{
		my $ready = '';

		vec($ready, fileno $reader, 1) = 1;
		select($ready, undef, undef, $timeout) > 0
		  or die 'timed out waiting for the clients';
		my $n = sysread $reader, my $bytes, 4096;
		last if !$n;
		$seen += $n;
	}
	# the last acknowledgement is not what it waits for
	select undef, undef, undef, rand 0.005;
	$ways_to_die{$way}->();
	close $reader;

	my @failed;
	local $SIG{ALRM} = sub { die 'timed out waiting for the clients to end' };
	alarm $timeout;
	while (%children)
	{
		my $pid = waitpid -1, 0;

		last if $pid < 0;
		my $who = delete $children{$pid} or next;
		push @failed, "$who: $?" if $?;
	}
	alarm 0;
	$node->poll_query_until('postgres', 'SELECT true') or die 'the server is not up';
	$admin = GigWire->connect($node);
	return @failed;
}

END
{
	kill 'KILL', keys %children if %children;
}

# ---------------------------------------------------------------------------
# What must be there
# ---------------------------------------------------------------------------

# Of each event in the log: event_id, deliveries and gigs; how often a delivery
# has been told to be its first, and whether an answer that may have told so was
# lost.
my %truth;
my $max_event_id = 0;

# The rows of inbox and backlogs, by unit and place: the event's id, the item's
# mark, the table, and the outcome or ''.
my %rows;

# Of each gig that has been named: the events that did, by event_id; the last
# of them; the last when it was taken out; and whether an event has come again
# since then, certainly or perhaps.
my %named;

my %sum = map { $_ => 0 } qw(acknowledged duplicates prepared),
  map { ($_, "$_ unwatched") } qw(committed lost unknown);

# Takes up a line of a client's notes.
sub take_note
{
	my ($units, $unit_named, $what, $name, @more) = @_;
	my $unit = $unit_named->{$name};

	if ($what eq 'C' || $what eq 'U' || $what eq 'D')
	{
		my $place = 0;

		$unit = $unit_named->{$name} = { name => $name, items => [] };
		push @$units, $unit;
		if ($what eq 'D')
		{
			$unit->{table} = $more[0];
			return;
		}
		$unit->{fate} = $what eq 'C' ? 'in flight' : 'undone';
		for (@more)
		{
			my ($door, $mark, $id) = /^(.)(.)(.*)$/;

			push @{ $unit->{items} },
			  { door => $door, mark => $mark, id => $id, place => $place++ };
			push @{ $sent{ (split /\./, $id)[0] } }, $id if $mark eq '+';
		}
	}
	elsif ($what eq 'N')
	{
		@$unit{qw(drained rejected)} = @more;
	}
	elsif ($what eq 'P' || $what eq 'H')
	{
		$unit->{$what} = 1;
	}
	elsif ($what eq 'A')
	{
		$unit->{fate} = 'acknowledged';
		$unit->{items}[$_]{told} = $more[$_] for 0 .. $#more;
	}
	elsif ($what eq 'R')
	{
		$unit->{fate} = 'undone';
	}
	return;
}

# The units of the round, as the clients have noted them; how many rows have
# been drained; and what errors the clients have seen that are not to be.
sub read_notes
{
	my (@units, %drained, @errors);

	for my $who (grep { -e notes_of($_) } @clients, 'z')
	{
		my %unit_named;

		open my $file, '<', notes_of($who) or die "could not read notes: $!";
		while (my $line = <$file>)
		{
			chomp $line;
			push @errors, "$who: $line"
			  if $line =~ /^X/ || $line =~ /^R/ && $line !~ /^R\t\S+\t(40P01|40001|as told)\b/;
			take_note(\@units, \%unit_named, split /\t/, $line, -1);
		}
		close $file;
		unlink notes_of($who);
	}
	for my $unit (grep { $_->{drained} } @units)
	{
		$drained{ $unit->{table} } += $unit->{drained};
		$sum{acknowledged} += $unit->{drained} - $unit->{rejected};
	}
	return (\@units, \%drained, \@errors);
}

sub read_rows
{
	my %found;

	for my $table ('inbox', @backlogs)
	{
		for my $row ($admin->rows("SELECT unit, place, outcome, convert_from(body, 'UTF8')::json->>'id' FROM $table"))
		{
			my ($unit, $place, $outcome, $id) = @$row;

			wrong('half', "row $unit $place is there twice") if $found{"$unit $place"};
			$found{"$unit $place"} =
			  { table => $table, outcome => defined $outcome ? $outcome : '', id => $id };
		}
	}
	return \%found;
}

# Commits or rolls back what was prepared and could not be committed.  What was
# prepared is there, unless it has been committed.
sub finish_prepared
{
	my ($units) = @_;
	my %prepared = map { $_->[0] => 1 } $admin->rows('SELECT gid FROM pg_prepared_xacts');

	for my $unit (@$units)
	{
		if (delete $prepared{ $unit->{name} })
		{
			$unit->{fate} = pick('acknowledged', 'undone');
			$admin->rows(($unit->{fate} eq 'undone' ? 'ROLLBACK' : 'COMMIT')
				. " PREPARED '$unit->{name}'");
			$sum{prepared}++;
		}
		elsif ($unit->{P})
		{
			$unit->{fate} = 'acknowledged';
		}
	}
	return map { "nobody has prepared $_" } sort keys %prepared;
}

# What there is to be seen after a recovery: rows by unit and place, the log by
# the events' ids, the log in its order; how often each id has been delivered in
# the round, at least and at most; and what is wrong with that, by theme.
my %seen;

sub wrong { my ($theme, $what) = @_; push @{ $seen{wrong}{$theme} }, $what; return }

# Looks at everything, given the clients' notes.  Returns what is wrong.
sub look
{
	my ($units, $drained) = @_;

	%seen = (least => {}, most => {}, wrong => { map { $_ => [] } qw(lost half told ids changes) });
	wrong('half', $_) for finish_prepared($units);
	$seen{rows} = read_rows();
	$seen{log} = [
		$admin->rows(
			q{
		SELECT l.event_id, convert_from(l.body, 'UTF8')::json->>'id' AS id, md5(l.body),
			l.account_id, l.event, l.name, d.deliveries
		FROM gigs.gig_event_log AS l
		LEFT JOIN gigs.gig_delivery AS d
			ON d.account_id = l.account_id AND d.event_id = l.event_id
				AND d.body_digest = substring(sha256(l.body) FROM 1 FOR 16)
		ORDER BY l.event_id})
	];
	$seen{event_id} = { map { $_->[1] => $_->[0] } @{ $seen{log} } };
	wrong('half', 'an event is twice in the log')
	  if keys %{ $seen{event_id} } != @{ $seen{log} };

	look_at_unit($_) for grep { !$_->{table} } @$units;
	look_at_rows($drained);
	look_at_log();
	look_at_changes($seen{wrong}{changes});
	return $seen{wrong};
}

# A delivery, if it has been one, and whether its outcome has been told.
sub count_delivery
{
	my ($id, $certain, $is_told) = @_;

	$seen{most}{$id}++;
	$seen{least}{$id}++ if $certain;
	$truth{$id}{untold} = 1 if !$is_told;
	return;
}

# Tells what has become of a unit in flight.  Whatever of it can tell has to say
# the same.
sub fate_of
{
	my ($unit) = @_;
	my @there;

	for my $item (@{ $unit->{items} })
	{
		push @there, $seen{rows}{"$unit->{name} $item->{place}"} if $item->{door} ne 'd';
		push @there, $seen{event_id}{ $item->{id} }
		  if $item->{door} ne 'b' && $item->{mark} eq '+';
	}
	my $n = grep { defined } @there;

	wrong('half', "of unit $unit->{name} $n of " . @there . ' are there')
	  if $n > 0 && $n < @there;
	return !@there ? 'unknown' : $n ? 'committed' : 'lost';
}

sub look_at_unit
{
	my ($unit) = @_;
	my $fate = $unit->{fate};

	if ($fate eq 'in flight')
	{
		$fate = fate_of($unit);
		$sum{ $unit->{H} ? "$fate unwatched" : $fate }++;
	}
	for my $item (@{ $unit->{items} })
	{
		my $key = "$unit->{name} $item->{place}";
		my $row = $seen{rows}{$key};

		if ($fate eq 'lost' || $fate eq 'undone')
		{
			wrong('half', "row $key is there, the unit is $fate") if $row;
			next;
		}
		$sum{acknowledged}++
		  if $fate eq 'acknowledged' && $item->{door} ne 'b' && $item->{mark} ne '!';
		if ($item->{door} eq 'd')
		{
			look_at_answer($item, $fate ne 'unknown');
			next;
		}
		if (!$row)
		{
			wrong('lost', "row $key is missing");
			next;
		}
		wrong('told', "row $key is $row->{outcome}, was told to be $item->{told}")
		  if defined $item->{told} && $item->{told} ne '-' && $item->{told} ne $row->{outcome};
		$rows{$key} = { %$row, outcome => '', id => $item->{id}, mark => $item->{mark} };
		wrong('half', "row $key is in table $row->{table}")
		  if ($row->{table} eq 'inbox') != ($item->{door} eq 'x');
	}
	return;
}

# Looks at what a function has answered.
sub look_at_answer
{
	my ($item, $certain) = @_;
	my ($id, $told) = @$item{qw(id told)};
	my $is_good = $item->{mark} ne '!';

	count_delivery($id, $certain, defined $told) if $is_good;
	return if !defined $told;
	my ($outcome, $event_id) = split / /, $told;

	look_at_outcome($id, $is_good, $outcome);
	wrong('ids', "$id was told to be event $event_id, is "
		  . (defined $seen{event_id}{$id} ? $seen{event_id}{$id} : 'none'))
	  if defined $event_id && $event_id ne ($seen{event_id}{$id} || '');
	return;
}

sub look_at_outcome
{
	my ($id, $is_good, $outcome) = @_;

	wrong('told', "$id was \"$outcome\"")
	  if $outcome !~ ($is_good ? qr/^(applied|stale|duplicate)$/ : qr/^rejected$/);
	$truth{$id}{first}++ if $outcome =~ /^(applied|stale)$/;
	return;
}

# Looks at the rows of inbox and backlogs, and at what has come of them since
# last time.
sub look_at_rows
{
	my ($drained) = @_;
	my %now = map { $_ => 0 } @backlogs, 'inbox';

	for my $key (sort keys %{ $seen{rows} })
	{
		my $row = $seen{rows}{$key};
		my $known = $rows{$key};

		if (!$known || $known->{id} ne $row->{id} || $known->{table} ne $row->{table})
		{
			wrong('half', "row $key is not what was sent");
			next;
		}
		next if $row->{outcome} eq $known->{outcome} && $row->{outcome} ne '';
		# a row in a backlog waits
		next if $row->{outcome} eq '' && $row->{table} ne 'inbox';

		wrong('half', "row $key was $known->{outcome}, is $row->{outcome}")
		  if $known->{outcome} ne '';
		$known->{outcome} = $row->{outcome};
		$now{ $row->{table} }++;
		count_delivery($row->{id}, 1, 1) if $known->{mark} ne '!';
		look_at_outcome($row->{id}, $known->{mark} ne '!', $row->{outcome});
	}
	for my $key (grep { !$seen{rows}{$_} } sort keys %rows)
	{
		wrong('lost', "row $key has gone");
	}
	for my $table (sort keys %$drained)
	{
		wrong('lost', "$drained->{$table} rows were drained from $table, now $now{$table} are")
		  if $now{$table} < $drained->{$table};
	}
	return;
}

# Looks at the log, and at how often its events have been delivered.
sub look_at_log
{
	my $newest = $max_event_id;

	for my $id (grep { !$seen{event_id}{$_} } sort keys %{ $seen{least} })
	{
		wrong('lost', "acknowledged event $id is missing");
	}
	for my $id (grep { !$seen{event_id}{$_} && $truth{$_}{event_id} } sort keys %truth)
	{
		wrong('lost', "event $id has gone");
	}
	for my $event (@{ $seen{log} })
	{
		my ($event_id, $id) = @$event;
		my $known = $truth{$id} ||= {};

		look_at_deliveries($event);
		if (!$known->{event_id})
		{
			wrong('ids', "event_id $event_id is from before") if $event_id <= $max_event_id;
			take_event($event);
			$newest = $event_id;
		}
		wrong('ids', "$id was event $known->{event_id}, is $event_id")
		  if $known->{event_id} != $event_id;
		next if !$seen{most}{$id};

		my $first = $known->{first} || 0;
		wrong('told', "$id was told $first times to be new")
		  if $first > 1 || $first == 0 && !$known->{untold};
		for my $gig (map { $named{$_} } @{ $known->{gigs} })
		{
			$gig->{again} = 'certainly' if $seen{least}{$id};
			$gig->{again} ||= 'perhaps';
		}
	}
	$max_event_id = $newest;
	return;
}

sub look_at_deliveries
{
	my ($event) = @_;
	my ($id, $deliveries) = @$event[ 1, 6 ];
	my $before = $truth{$id}{deliveries} || 0;
	my $least = $before + ($seen{least}{$id} || 0);
	my $most = $before + ($seen{most}{$id} || 0);

	if (!defined $deliveries)
	{
		wrong('half', "event $id has no delivery");
		return;
	}
	wrong('lost', "$id was delivered $least times, counted $deliveries")
	  if $deliveries < $least;
	wrong('half', "$id was delivered at most $most times, counted $deliveries")
	  if $deliveries > $most;
	$sum{duplicates} += $deliveries - ($before || 1);
	$truth{$id}{deliveries} = $deliveries;
	return;
}

# Takes note of an event that is seen in the log for the first time.
sub take_event
{
	my ($event) = @_;
	my ($event_id, $id, $md5, $account, $kind, $webhook) = @$event;
	my $expected = event_of($id);

	wrong('half', "event $id is not what was sent")
	  if "$account $kind $webhook $md5" ne
	  "$expected->{account} $expected->{kind} $name " . md5_hex($expected->{body});
	$truth{$id}{event_id} = $event_id;
	$truth{$id}{gigs} = [ map { "$account $_" } @{ $expected->{gigs} } ];
	for my $gig (@{ $truth{$id}{gigs} })
	{
		$named{$gig}{by}{$event_id} = $kind;
		$named{$gig}{last} = $event_id;
	}
	return;
}

# A gig is pending if an event has named it, or has come again, since it was
# taken out.
sub look_at_changes
{
	my ($wrong) = @_;
	my %pending =
	  map { ("$_->[0] $_->[1]" => $_) }
	  $admin->rows('SELECT account_id, gig_id, event_id, change FROM gigs.gig_change');

	for my $gig (sort keys %named)
	{
		my $known = $named{$gig};
		my $row = delete $pending{$gig};
		my $is_new = !defined $known->{taken} || $known->{last} > $known->{taken};
		my $again = $known->{again} || '';

		if (!$row)
		{
			push @$wrong, "$gig is missing" if $is_new || $again eq 'certainly';
			delete $known->{again};
			next;
		}
		my ($event_id, $change) = @$row[ 2, 3 ];

		push @$wrong, "$gig is $change by $event_id, the last was $known->{last}"
		  if $is_new && $event_id != $known->{last};
		# a redelivery brings it back to be fetched
		push @$wrong, "$gig is $change by $event_id, which is not so"
		  if $change ne ($known->{by}{$event_id} || '')
		  && !($change eq 'gigs.updated' && $known->{by}{$event_id} && ($again || !$is_new));
		push @$wrong, "$gig is there again"
		  if !$is_new && !$again;
		# from now on it stays
		$known->{again} = 'certainly';
	}
	push @$wrong, map { "$_ is there, and nobody has named it" } sort keys %pending;
	return;
}

# Takes some gigs out, as a consumer does.
sub consume
{
	for my $row ($admin->rows('DELETE FROM gigs.gig_change WHERE random() < 0.5 RETURNING account_id, gig_id'))
	{
		my $known = $named{"$row->[0] $row->[1]"};

		$known->{taken} = $max_event_id;
		delete $known->{again};
	}
	return;
}

# Where an account's row is not what SQL makes of the bodies in the log, without
# the help of the extension.
my $accounts_told_otherwise = q{
	WITH logged AS MATERIALIZED (
		SELECT l.*, convert_from(l.body, 'UTF8')::jsonb->'data' AS data
		FROM gigs.gig_event_log AS l
	), told AS (
		SELECT *,
			event = 'gigs.partially_synced' AS partial,
			event = 'gigs.fully_synced' AS full_sync,
			(data->>'days_synced')::int AS days
		FROM logged
	), before AS (
		SELECT *,
			bool_or(partial OR full_sync) OVER earlier AS was_synced,
			bool_or(full_sync) OVER earlier AS was_full,
			max(days) OVER earlier AS had_days
		FROM told
		WINDOW earlier AS (
			PARTITION BY account_id ORDER BY event_id
			ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
		)
	), judged AS (
		SELECT *, partial AND (was_full IS TRUE OR (days < had_days) IS TRUE) AS late
		FROM before
	), expected AS (
		SELECT
			account_id,
			(array_agg(data ORDER BY event_id DESC) FILTER (WHERE NOT late))[1] AS snapshot,
			CASE
				WHEN bool_or(full_sync) THEN 'fully_synced'
				WHEN bool_or(partial) THEN 'partially_synced'
				ELSE 'unknown'
			END AS state,
			max(days) AS days_synced,
			coalesce(sum((data->>'added_count')::int), 0) AS added_total,
			coalesce(sum((data->>'updated_count')::int), 0) AS updated_total,
			coalesce(sum((data->>'removed_count')::int), 0) AS removed_total,
			count(*) AS events,
			min(received_at) AS first_event_at,
			min(received_at) FILTER (WHERE partial AND was_synced IS NOT TRUE) AS partially_synced_at,
			min(received_at) FILTER (WHERE full_sync) AS fully_synced_at,
			max(received_at) FILTER (WHERE NOT partial AND NOT full_sync) AS refreshed_at,
			max(received_at) AS last_event_at,
			(array_agg(event ORDER BY event_id DESC))[1] AS last_event
		FROM judged
		GROUP BY account_id
	), redelivered AS (
		SELECT account_id, sum(deliveries - 1) AS duplicates
		FROM gigs.gig_delivery
		GROUP BY account_id
	), expected_rows AS (
		SELECT
			account_id,
			(snapshot->>'user')::uuid AS user_id,
			state,
			days_synced,
			(snapshot->>'available_from')::timestamptz AS available_from,
			(snapshot->>'available_to')::timestamptz AS available_to,
			(snapshot->>'available_count')::int AS available_count,
			added_total, updated_total, removed_total, events, duplicates,
			first_event_at, partially_synced_at, fully_synced_at, refreshed_at,
			last_event, last_event_at
		FROM expected JOIN redelivered USING (account_id)
	), stored_rows AS (
		SELECT
			account_id, user_id, state::text, days_synced, available_from,
			available_to, available_count,
			added_total, updated_total, removed_total, events, duplicates,
			first_event_at, partially_synced_at, fully_synced_at, refreshed_at,
			last_event, last_event_at
		FROM gigs.gig_account_sync
	)
	SELECT 'is ' || s::text FROM (TABLE stored_rows EXCEPT TABLE expected_rows) AS s
	UNION ALL
	SELECT 'should be ' || e::text FROM (TABLE expected_rows EXCEPT TABLE stored_rows) AS e
	ORDER BY 1 DESC
};

my $account_rows = 'SELECT a::text FROM gigs.gig_account_sync AS a ORDER BY account_id';

# The tables, with those that they store large values in.
my $our_tables = q{
	WITH ours AS (
		SELECT oid, reltoastrelid
		FROM pg_class
		WHERE relkind = 'r' AND relnamespace IN ('gigs'::regnamespace, 'public'::regnamespace)
	), tables AS (
		SELECT oid FROM ours
		UNION ALL
		SELECT reltoastrelid FROM ours WHERE reltoastrelid <> 0
	)
};

# What amcheck finds in heaps and B-trees.
sub look_at_storage
{
	my @wrong;
	my @indexes = $admin->rows(
		"$our_tables SELECT i.indexrelid, i.indexrelid::regclass
		FROM pg_index AS i
		JOIN tables AS t ON t.oid = i.indrelid
		JOIN pg_class AS c ON c.oid = i.indexrelid
		WHERE c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')");

	for my $index (@indexes)
	{
		my ($oid, $index_name) = @$index;

		for my $check (
			"bt_index_check('$oid'::regclass, true)",
			"bt_index_parent_check('$oid'::regclass, true, true)")
		{
			my $answer = $admin->query("SELECT $check");

			die "the connection was lost in: $check" if !$answer;
			push @wrong, "$index_name: $answer->{message}" if defined $answer->{sqlstate};
		}
	}
	push @wrong, 'there are too few indexes' if @indexes < 7 + 1 + 2 * @backlogs;
	push @wrong,
	  map { join ' ', grep { defined } @$_ }
	  $admin->rows("$our_tables SELECT t.oid::regclass, h.*
		FROM tables AS t, verify_heapam(t.oid, check_toast => true) AS h")
	  if $version >= 140000;
	return @wrong;
}

# amcheck knows nothing of BRIN: what it leads to must be what there is.
sub look_at_brin
{
	my @wrong;

	for (1 .. 3)
	{
		my ($start, $end) = map {
			$admin->value(
				"SELECT min(received_at) + (max(received_at) - min(received_at)) * $_ FROM gigs.gig_event_log")
		} sort { $a <=> $b } rand, rand;
		my $query =
		  "SELECT count(*) FROM gigs.gig_event_log WHERE received_at BETWEEN '$start' AND '$end'";
		my @counts = map {
			$admin->rows("SET enable_$_ = off");
			my $count = $admin->value($query);
			$admin->rows("RESET enable_$_");
			$count;
		} ('seqscan', 'bitmapscan');

		push @wrong, "the index on received_at finds $counts[0] events of $counts[1]"
		  if $counts[0] != $counts[1];
	}
	return @wrong;
}

# An assertion, that there is nothing wrong.
sub all_well
{
	my ($title, @wrong) = @_;

	splice @wrong, 20, @wrong - 20, '... and ' . (@wrong - 20) . ' more' if @wrong > 20;
	return is(join("\n", @wrong), '', $title);
}

# All assertions after a recovery.
sub everything_is_well
{
	my ($title) = @_;
	my ($units, $drained, $client_errors) = read_notes();
	my $wrong = look($units, $drained);
	my $good = 1;

	$good &= all_well("$title: clients saw no error but such as call for another try", @$client_errors);
	$good &= all_well("$title: what was acknowledged is there", @{ $wrong->{lost} });
	$good &= all_well("$title: what is there is there as a whole, and once", @{ $wrong->{half} });
	$good &= all_well("$title: outcomes told were true", @{ $wrong->{told} });
	$good &= all_well("$title: no event_id was given out twice", @{ $wrong->{ids} });
	$good &= all_well("$title: named gigs are pending", @{ $wrong->{changes} });
	$good &= all_well("$title: nothing is there without its event",
		map { "a row of $_->[0]" } $admin->rows(
			q{
			SELECT 'gig_delivery' FROM gigs.gig_delivery AS d
			WHERE NOT EXISTS (
				SELECT FROM gigs.gig_event_log AS l
				WHERE l.event_id = d.event_id AND l.account_id = d.account_id
			)
			UNION ALL
			SELECT 'gig_event_log' FROM gigs.gig_event_log GROUP BY event_id HAVING count(*) > 1}));
	$good &= all_well("$title: accounts are what SQL makes of the log",
		map { $_->[0] } $admin->rows($accounts_told_otherwise));
	$good &= all_well("$title: the log is found by time", look_at_brin());

  SKIP:
	{
		skip 'this server has no amcheck', 1 if !$amcheck;
		$good &= all_well("$title: heaps and indexes are sound", look_at_storage());
	}

	my @before = map { $_->[0] } $admin->rows($account_rows);
	my $rebuilt = join '|', map { @$_ } $admin->rows('SELECT * FROM gigs.rebuild_gig_sync()');
	my @after = map { $_->[0] } $admin->rows($account_rows);
	$good &= is(
		join("\n", $rebuilt, first_difference(\@after, \@before)),
		@before . "|0\n",
		"$title: folding the log again changes nothing");

	note "$title: " . scalar(@$units) . " units, $max_event_id the last event" if $ENV{GIGS_LONG};
	return $good;
}

# ---------------------------------------------------------------------------
# All rounds
# ---------------------------------------------------------------------------

# Of every four deaths one is of each kind, and two are with direct writes.
my @deck;
my %survived = map { $_ => 0 } keys %ways_to_die;
my $alive = 1;

sub killed { return $survived{'all killed'} + $survived{'one killed, then all'} }

while (@deck || killed() < $kills)
{
	if (!@deck)
	{
		my @direct = shuffled('on', 'on', 'off', 'off');

		@deck = map { [ $_, shift @direct ] } shuffled(sort keys %ways_to_die);
	}
	my ($way, $direct) = @{ shift @deck };

	# The startup process compares every page that it replays with what it was.
	my $compare = chance(0.3);
	my $title = ++$round . ", $way, direct_writes=$direct";
	my $options = "-c gigs_webhooks.direct_writes=$direct -c application_name=client"
	  . ($compare ? ' -c wal_consistency_checking=all' : '');

	consume();
	stop_wal_writer() if $way eq 'all killed';
	my @failed = work_and_die(between(50, 1500), $way, $options);
	my $good = is("@failed", '', "$title: clients end with their server");

	$good &= everything_is_well($title);
	$alive = $good;
	last if !$good;
	$survived{$way}++;
}

# What is left in the backlogs goes the way of all.
if ($alive)
{
	$round++;
	$admin->rows("CALL gigs.drain_gig_inbox('$_')") for @backlogs;
	everything_is_well('at last');
	is( join(' ', sort grep { $rows{$_}{outcome} eq '' } keys %rows),
		'', 'at last: all backlogs are drained');
}

# A commit that nobody else's writes to disk, and that nothing comes after.
if ($alive)
{
	my %doors = (
		ingest_gig_event => "SELECT gigs.ingest_gig_event(%s, %s)",
		try_ingest_gig_event => "SELECT outcome FROM gigs.try_ingest_gig_event(%s, %s)",
		ingest_gig_events => "SELECT outcome FROM gigs.ingest_gig_events(ARRAY[%s], ARRAY[%s])",
		inbox => "INSERT INTO inbox (body, signature) VALUES (%s, %s) RETURNING outcome",
		drain => "WITH row AS (SELECT %s AS body, %s AS signature) INSERT INTO backlog (body, signature) TABLE row RETURNING 'applied'");

	for my $call (map { ([ $_, 'on' ], [ $_, 'off' ]) } sort keys %doors)
	{
		my ($door, $direct) = @$call;
		my $id = "alone.$round.$door $direct";

		$admin->rows("SET gigs_webhooks.direct_writes = $direct");
		$admin->rows('CHECKPOINT');
		stop_wal_writer();
		my $told = $admin->value(sprintf $doors{$door}, literals({ id => $id, mark => '+' }));
		$admin->rows(q{CALL gigs.drain_gig_inbox('backlog')}) if $door eq 'drain';
		kill_all();
		start_server();
		$admin = GigWire->connect($node);
		like("$told "
			  . $admin->value("SELECT count(*) FROM gigs.gig_event_log WHERE body LIKE '%\"$id\"%'"),
			qr/^(applied|stale) 1$/,
			"$door, direct_writes=$direct: an event alone is there");
	}
}

my $figures = join "\n",
  killed() . ' kills of the whole server survived',
  'deaths: ' . join(', ', map { "$_ $survived{$_}" } sort keys %survived),
  "$sum{acknowledged} events acknowledged, $sum{duplicates} duplicates counted",
  'transactions in flight: ' . fates(''),
  'transactions whose answer was not waited for: ' . fates(' unwatched'),
  "prepared transactions that had to be finished: $sum{prepared}",
  "GIGS_SEED=$seed";

sub fates
{
	my ($unwatched) = @_;

	return join ', ', map { $sum{"$_->[0]$unwatched"} . " $_->[1]" }
	  [ 'committed', 'found committed' ], [ 'lost', 'not' ],
	  [ 'unknown', 'that can\'t be told' ];
}

# who waits for the long form wants to see them
if ($ENV{GIGS_LONG} || !$alive) { diag $figures }
else { note $figures }

$node->stop;
done_testing();
