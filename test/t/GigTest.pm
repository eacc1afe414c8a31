# What the TAP tests share: servers with the extension's module, bodies,
# signatures that the extension has not computed, SQL literals, sessions, and
# checks of the tables.

package GigTest;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha512_hex);
use Encode qw(encode);
use Exporter qw(import);
use File::Basename qw(dirname);
use IPC::Run ();
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_node sign payload bytea_literal text_literal
  copy_columns finds_none ask first_difference run_together create_gigs troubles rows_of
  start_client finish_client answer begin_asking end_asking start_sessions
  wait_for_locks give_extension);
our %EXPORT_TAGS = (dice => [qw(chance pick between shuffled)]);
our @EXPORT_OK = @{ $EXPORT_TAGS{dice} };

# Starts a server that logs warnings only, because PostgreSQL::Test::Cluster
# logs every statement, which takes most of the time of a test.  A hash before
# the lines of configuration goes to its init().
sub start_node
{
	my ($name, @conf) = @_;
	my %init = @conf && ref $conf[0] ? %{ shift @conf } : ();
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(%init,
		extra => [ '--encoding=UTF8', '--locale=C', @{ $init{extra} || [] } ]);
	$node->append_conf('postgresql.conf', join("\n",
			'log_statement = none', 'log_min_messages = warning',
			'log_min_error_statement = panic', 'autovacuum = off',
			@conf, ''));
	$node->start;
	return $node;
}

# The signature of a body's bytes; the secret is text.
sub sign
{
	my ($body, $secret) = @_;

	return hmac_sha512_hex($body, encode('UTF-8', $secret));
}

# Returns a body of test/payloads, byte for byte.
sub payload
{
	my ($name) = @_;
	my $path = dirname(__FILE__) . "/../payloads/$name.json";

	open my $file, '<:raw', $path or die "could not open $path: $!";
	local $/;
	my $body = <$file>;
	close $file;
	return $body;
}

# Without the cast the literal would have the type text, because the functions
# that take bodies accept both.
sub bytea_literal
{
	my ($bytes) = @_;

	return 'NULL::bytea' if !defined $bytes;
	return "'\\x" . unpack('H*', $bytes) . "'::bytea";
}

# Returns the columns body and signature of a row in COPY's format.
sub copy_columns
{
	my ($body, $signature) = @_;

	return join "\t", defined $body ? '\\\\x' . unpack('H*', $body) : '\\N',
	  defined $signature ? $signature : '\\N';
}

sub text_literal
{
	my ($text) = @_;

	return 'NULL' if !defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

# Runs a query in a session of background_psql().  Returns what it printed, with
# the SQLSTATE of the last statement if that failed.
my $asked = 0;

sub ask
{
	my ($session, $query) = @_;
	my $end = 'asked ' . ++$asked;
	my $output = $session->query_until(qr/^$end$/m,
		"$query\n;\n\\if :ERROR\n\\echo :SQLSTATE\n\\endif\n\\echo $end\n");

	$output =~ s/\n?^$end\n?//m;
	return $output;
}

# Starts a query that waits for another session.  end_asking() waits for its end
# and returns what ask() would.
sub begin_asking
{
	my ($session, $query) = @_;
	my $begin = 'begun ' . ++$asked;

	$session->query_until(qr/^$begin$/m,
		"\\echo $begin\n$query\n;\n\\if :ERROR\n\\echo :SQLSTATE\n\\endif\n\\echo ended\n");
	return;
}

sub end_asking
{
	my ($session) = @_;
	my $output = $session->query_until(qr/^ended$/m, '');

	$output =~ s/\n?^ended\n?//m;
	return $output;
}

# Runs a query in a new session.  Returns what it printed, or the SQLSTATE and
# the message of its first error.
sub answer
{
	my ($node, $dbname, $query) = @_;
	my ($stdout, $stderr) = ('', '');

	$node->psql($dbname, $query,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $stderr =~ /(?:ERROR|FATAL):  (\w{5}): (.*)/ ? "$1 $2" : $stdout;
}

# Returns the first difference of two lists of lines, or an empty string.
# is_deeply would print the whole lists.
sub first_difference
{
	my ($got, $expected) = @_;
	my $n = @$got > @$expected ? @$got : @$expected;

	for my $i (0 .. $n - 1)
	{
		my $g = $i < @$got ? $got->[$i] : '(nothing)';
		my $e = $i < @$expected ? $expected->[$i] : '(nothing)';

		return "at $i: got \"$g\", expected \"$e\"" if $g ne $e;
	}
	return '';
}

# Tests that a query finds nothing.
sub finds_none
{
	my ($node, $dbname, $title, $query) = @_;

	is($node->safe_psql($dbname, "SELECT f::text FROM ($query) AS f LIMIT 5"), '', $title);
	return;
}

# Starts a session that writes the tables directly, and one that does so by
# statements.  Returns pairs of a title and a session.
sub start_sessions
{
	my ($node, $dbname) = @_;

	return map {
		my $session = $node->background_psql($dbname, on_error_stop => 0);

		ask($session, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $_");
		[ "direct_writes=$_", $session ];
	} 'on', 'off';
}

# Waits until so many sessions wait for locks.
sub wait_for_locks
{
	my ($node, $dbname, $n) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = $n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '$dbname'")
	  or die "there are no $n sessions that wait for locks";
	return;
}

# Runs psql scripts at the same time.  Returns what each printed to standard
# output and to standard error.
sub run_together
{
	my ($node, $dbname, @scripts) = @_;
	my @out = map { '' } @scripts;
	my @err = map { '' } @scripts;
	my @runs;

	for my $i (0 .. $#scripts)
	{
		push @runs,
		  IPC::Run::start(
			[
				'psql', '-XAtq', '-d', $node->connstr($dbname),
				'-f', '-'
			],
			'<',
			\$scripts[$i],
			'>',
			\$out[$i],
			'2>',
			\$err[$i],
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	}
	$_->finish for @runs;
	return (\@out, \@err);
}

# Starts a psql that runs a script in the background, with files for input and
# output, because pipes would have to be pumped.
sub start_client
{
	my ($node, $dbname, $script, @options) = @_;
	my $files = PostgreSQL::Test::Utils::tempdir('client');

	append_to_file("$files/script", $script);
	return {
		files => $files,
		run => IPC::Run::start(
			[
				'psql', '-XAtq', @options, '-d', $node->connstr($dbname),
				'-f', "$files/script"
			],
			'<', \undef, '>', "$files/out", '2>', "$files/err",
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default
				  * ($ENV{GIGS_LONG} ? 20 : 1)))
	};
}

# Waits for such a psql.  Returns what it printed to standard output and to
# standard error.
sub finish_client
{
	my ($client) = @_;

	$client->{run}->finish;
	return map { slurp_file("$client->{files}/$_") } 'out', 'err';
}

# ---------------------------------------------------------------------------
# Numbered webhooks, for tests that only count events
# ---------------------------------------------------------------------------

# Creates the extension in the schema gigs, with a subscription "payroll" whose
# secret is "secret", and functions that make webhooks for it:
#
#   hook(account, n, size)     a body of an event that two numbers tell from all
#                              others; it is longer by a third number of bytes,
#                              which are not part of the event
#   sig(body)                  its signature
#   take(account, n)           ingests one; returns the outcome
#   take_all(accounts, ns)     ingests several; returns the number of each outcome
#   account(account)           the number's UUID
#
# The kind depends on n.  An event names a gig of its own and one that all events
# of the account name.
sub create_gigs
{
	my ($node, $dbname) = @_;

	$node->safe_psql(
		$dbname, q{
		CREATE SCHEMA IF NOT EXISTS gigs;
		CREATE EXTENSION gigs_webhooks SCHEMA gigs;
		SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'secret');
		CREATE FUNCTION public.account(account int) RETURNS uuid
		LANGUAGE sql IMMUTABLE AS $$ SELECT md5('account ' || account)::uuid $$;
		CREATE FUNCTION public.hook(account int, n int, size int DEFAULT 0) RETURNS bytea
		LANGUAGE sql IMMUTABLE AS $$
			SELECT convert_to(format('{"event":"gigs.%s","name":"payroll","data":{'
				'"account":"%s","user":"%s","available_count":%s,"days_synced":%s,'
				'"added_count":1,"updated_count":2,"removed_count":3,'
				'"updated_gigs":["%s","%s"],"removed_gigs":["%s"]},"resource":"%s"}',
				(ARRAY['partially_synced', 'added', 'updated', 'removed', 'fully_synced'])[n % 5 + 1],
				public.account(account), md5('user ' || account / 3)::uuid, n, n % 90,
				md5(account || ' ' || n)::uuid, public.account(account), public.account(account),
				(SELECT coalesce(string_agg(md5(format('%s %s %s', account, n, i)), ''), '')
					FROM generate_series(1, size / 32) AS i)), 'UTF8')
		$$;
		CREATE FUNCTION public.sig(body bytea) RETURNS text
		LANGUAGE sql IMMUTABLE AS $$ SELECT gigs.sign_gig_event(body, 'secret'::text) $$;
		CREATE FUNCTION public.take(account int, n int) RETURNS text
		LANGUAGE sql VOLATILE AS $$
			SELECT gigs.ingest_gig_event(b, public.sig(b))::text FROM public.hook(account, n) AS b
		$$;
		CREATE FUNCTION public.take_all(accounts int[], ns int[]) RETURNS text
		LANGUAGE sql VOLATILE AS $$
			SELECT string_agg(format('%s %s', outcome, n), ', ' ORDER BY outcome)
			FROM (
				SELECT r.outcome, count(*) AS n
				FROM (
					SELECT array_agg(h.b ORDER BY o) AS bodies, array_agg(public.sig(h.b) ORDER BY o) AS sigs
					FROM unnest(accounts, ns) WITH ORDINALITY AS u (account, n, o), public.hook(u.account, u.n) AS h (b)
				) AS a, gigs.ingest_gig_events(a.bodies, a.sigs) AS r
				GROUP BY 1
			) AS c
		$$;
	});
	return;
}

# Returns contradictions between and within the tables, or an empty string: log
# and accounts must agree, rebuilding must change nothing, and amcheck must find
# nothing.  Nothing may have been pruned or have left the dedupe window.
sub troubles
{
	my ($node, $dbname) = @_;

	return $node->safe_psql(
		$dbname, q{
		SET client_min_messages = warning;
		SELECT 'accounts without their events: ' || count(*)
		FROM gigs.gig_account_sync AS a
		FULL JOIN (
			SELECT
				account_id,
				count(*) FILTER (WHERE outcome <> 'duplicate') AS events,
				count(*) FILTER (WHERE outcome = 'duplicate') AS duplicates,
				max(event_id) AS last_event_id
			FROM gigs.gig_event_log
			GROUP BY 1
		) AS l USING (account_id)
		WHERE (a.events, a.duplicates, a.last_event_id) IS DISTINCT FROM (l.events, l.duplicates, l.last_event_id)
		HAVING count(*) > 0;

		SELECT 'rows of the log with wrong outcomes: ' || count(*)
		FROM gigs.gig_event_log AS l
		WHERE l.outcome NOT IN ('applied', 'stale', 'duplicate')
			OR (l.outcome = 'duplicate') IS DISTINCT FROM (l.body IS NULL)
			OR (l.outcome = 'duplicate') IS DISTINCT FROM (l.duplicate_of IS NOT NULL)
		HAVING count(*) > 0;

		SELECT 'duplicates without their originals: ' || count(*)
		FROM gigs.gig_event_log AS l
		LEFT JOIN gigs.gig_event_log AS o
			ON o.event_id = l.duplicate_of AND o.account_id = l.account_id
				AND o.event = l.event AND o.outcome <> 'duplicate' AND o.event_id < l.event_id
		WHERE l.outcome = 'duplicate' AND o.event_id IS NULL
		HAVING count(*) > 0;

		SELECT 'remembered deliveries that are not in the log: ' || count(*)
		FROM gigs.gig_recent_delivery AS r
		LEFT JOIN gigs.gig_event_log AS l
			ON l.event_id = r.event_id AND l.account_id = r.account_id
				AND l.received_at = r.received_at AND l.outcome <> 'duplicate'
		WHERE l.event_id IS NULL
		HAVING count(*) > 0;

		SELECT 'accounts that have forgotten deliveries: ' || count(*)
		FROM gigs.gig_account_sync AS a
		LEFT JOIN (
			SELECT account_id, count(*) AS n FROM gigs.gig_event_log WHERE event = 'reconciled' GROUP BY 1
		) AS r ON r.account_id = a.account_id
		WHERE cardinality(a.recent_event_ids) <> least(a.events - coalesce(r.n, 0), 1000)
		HAVING count(*) > 0;

		SELECT 'events that were applied twice: ' || count(*)
		FROM (
			SELECT FROM gigs.gig_event_log
			WHERE outcome <> 'duplicate'
			GROUP BY account_id, body HAVING count(*) > 1
		) AS l
		HAVING count(*) > 0;

		SELECT 'ids given twice: ' || count(*)
		FROM (SELECT FROM gigs.gig_event_log GROUP BY event_id HAVING count(*) > 1) AS l
		HAVING count(*) > 0;

		BEGIN;
		CREATE TEMP TABLE rows_before ON COMMIT DROP AS SELECT a::text AS r FROM gigs.gig_account_sync AS a;
		SELECT 'accounts not rebuilt: ' || accounts_skipped FROM gigs.rebuild_gig_sync() WHERE accounts_skipped > 0;
		SELECT 'accounts changed by rebuilding: ' || count(*)
		FROM rows_before AS b
		FULL JOIN (SELECT a::text AS r FROM gigs.gig_account_sync AS a) AS a USING (r)
		WHERE a.r IS NULL OR b.r IS NULL
		HAVING count(*) > 0;
		ROLLBACK;

		CREATE EXTENSION IF NOT EXISTS amcheck;
		SELECT bt_index_parent_check(i.indexrelid, true)
		FROM pg_index AS i
		JOIN pg_class AS x ON x.oid = i.indexrelid
		JOIN pg_am AS m ON m.oid = x.relam
		WHERE m.amname = 'btree' AND x.relkind = 'i' AND i.indisvalid
			AND (i.indrelid::regclass::text LIKE 'gigs.%'
				OR i.indrelid IN (SELECT reltoastrelid FROM pg_class WHERE oid::regclass::text LIKE 'gigs.%'))
		\g /dev/null
		SELECT format('%s: %s', c.oid::regclass, v.msg)
		FROM pg_class AS c, verify_heapam(c.oid) AS v
		WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 't');
	});
}

# Returns all rows of the extension's tables, or of those given, a line each.
sub rows_of
{
	my ($node, $dbname, @tables) = @_;

	@tables = qw(gig_subscription gig_event_log gig_account_sync gig_quarantine
	  gig_consumer gig_consumer_retry)
	  if !@tables;
	return $node->safe_psql($dbname,
		"SET TimeZone = 'UTC';\n" . join '',
		map { "SELECT '$_', t::text FROM gigs.$_ AS t ORDER BY t::text COLLATE \"C\";\n" } @tables);
}

# Gives all of the extension to a role.  Sequences go with the tables of their
# columns.
sub give_extension
{
	my ($node, $dbname, $role) = @_;

	$node->safe_psql(
		$dbname, q{
		SELECT format('ALTER %s %s OWNER TO } . $role . q{', o.type, o.identity)
		FROM pg_depend AS d
		JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
		CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS o
		WHERE e.extname = 'gigs_webhooks'
			AND o.type IN ('table', 'view', 'sequence', 'function', 'procedure')
			AND NOT EXISTS (
				SELECT FROM pg_depend AS i
				WHERE i.classid = d.classid AND i.objid = d.objid AND i.deptype IN ('a', 'i')
					AND i.refclassid = 'pg_class'::regclass AND o.type = 'sequence')
		\gexec
	});
	return;
}

# Random numbers, for tests that choose at random what to do.
sub chance { return rand() < $_[0] }
sub pick { return $_[ int rand @_ ] }
sub between { my ($from, $to) = @_; return $from + int rand($to - $from + 1) }

sub shuffled
{
	my @list = @_;

	for (my $i = @list; --$i > 0;)
	{
		my $j = int rand($i + 1);
		@list[ $i, $j ] = @list[ $j, $i ];
	}
	return @list;
}

1;
