# What the tests share: a server with the extension's module at hand, bodies,
# signatures that are not the extension's own, and SQL literals.

package GigTest;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha512_hex);
use Encode qw(encode);
use Exporter qw(import);
use File::Basename qw(dirname);
use IPC::Run ();

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_node sign payload bytea_literal text_literal
  ask first_difference run_together create_gigs troubles rows_of
  start_client finish_client answer begin_asking end_asking);
our %EXPORT_TAGS = (dice => [qw(chance pick between shuffled)]);
our @EXPORT_OK = @{ $EXPORT_TAGS{dice} };

# A server of its own, quiet enough that logging isn't what a test spends its
# time with: PostgreSQL::Test::Cluster logs every statement.  What goes to its
# init() may come first, as a hash.
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

# A body of test/payloads, byte for byte.
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

# Without the cast the literal would be taken for text, which the functions
# that take bodies accept as well.
sub bytea_literal
{
	my ($bytes) = @_;

	return 'NULL::bytea' if !defined $bytes;
	return "'\\x" . unpack('H*', $bytes) . "'::bytea";
}

sub text_literal
{
	my ($text) = @_;

	return 'NULL' if !defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

# Asks a session that psql keeps open in the background.  Returns what it
# printed, with the SQLSTATE of the last statement where that failed.
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

# Asks a session something that it has to wait for somebody else with.
# end_asking() returns what it printed then, with the SQLSTATE as ask() does.
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

# What a session of its own gets for an answer: what it prints, or the SQLSTATE
# and the message of its first error.
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

# Where two lists of lines differ first, for a failure's diagnosis; an empty
# string where they don't.  is_deeply would print as much, but not shortly.
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

# Runs several psql scripts at the same time.  Returns what each printed to
# standard output and to standard error.
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

# Starts a psql that runs a script by itself: through files, as pipes would have
# to be pumped.
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

# Waits for it; returns what it printed to standard output and to standard
# error.
sub finish_client
{
	my ($client) = @_;

	$client->{run}->finish;
	return map { slurp_file("$client->{files}/$_") } 'out', 'err';
}

# ---------------------------------------------------------------------------
# Numbered webhooks, for tests of what a server goes through: what they say
# doesn't matter there, but that each of them counts, and once.
# ---------------------------------------------------------------------------

# Creates the extension in the schema gigs, with a subscription "payroll" whose
# secret is "secret", and functions that make webhooks for it:
#
#   hook(account, n, size)     a body that two numbers tell from all others, and
#                              which a third makes so many bytes longer
#   sig(body)                  its signature
#   take(account, n)           ingests one; its outcome
#   take_all(accounts, ns)     ingests several; how many of each outcome
#   account(account)           the number's UUID
#
# A webhook's kind goes by n, and it names a gig of its own and one that the
# whole account has in common.
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

# What doesn't add up in the tables, an empty string where all does: log,
# deliveries, accounts and changes have to tell the same story, rebuilding must
# change nothing, and amcheck find nothing.  It holds as long as nothing has been
# pruned and no delivery has left the dedupe window.
sub troubles
{
	my ($node, $dbname) = @_;

	return $node->safe_psql(
		$dbname, q{
		SET client_min_messages = warning;
		SELECT 'accounts without their events: ' || count(*)
		FROM gigs.gig_account_sync AS a
		FULL JOIN (SELECT account_id, count(*) AS n FROM gigs.gig_event_log GROUP BY 1) AS l USING (account_id)
		WHERE a.events IS DISTINCT FROM l.n
		HAVING count(*) > 0;

		SELECT 'accounts without their deliveries: ' || count(*)
		FROM gigs.gig_account_sync AS a
		FULL JOIN (SELECT account_id, sum(deliveries) AS n FROM gigs.gig_delivery GROUP BY 1) AS d USING (account_id)
		WHERE a.events + a.duplicates IS DISTINCT FROM d.n
		HAVING count(*) > 0;

		SELECT 'events without their deliveries: ' || count(*)
		FROM gigs.gig_event_log AS l
		FULL JOIN gigs.gig_delivery AS d
			ON d.event_id = l.event_id AND d.account_id = l.account_id
				AND d.body_digest = substr(sha256(l.body), 1, 16)
		WHERE l.event_id IS NULL OR d.event_id IS NULL
		HAVING count(*) > 0;

		SELECT 'changes without their events: ' || count(*)
		FROM gigs.gig_change AS c
		LEFT JOIN gigs.gig_event_log AS l ON l.event_id = c.event_id AND l.account_id = c.account_id
		WHERE c.change IS DISTINCT FROM l.event
		HAVING count(*) > 0;

		SELECT 'named gigs without their changes: ' || count(*)
		FROM gigs.gig_event_history AS h, unnest(h.changed_gigs) AS g
		LEFT JOIN gigs.gig_change AS c ON c.gig_id = g
		WHERE c.account_id IS NULL
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
		SELECT current_setting('server_version_num')::int >= 140000 AS has_verify_heapam \gset
		\if :has_verify_heapam
		SELECT format('%s: %s', c.oid::regclass, v.msg)
		FROM pg_class AS c, verify_heapam(c.oid) AS v
		WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 't');
		\endif
	});
}

# All rows of the extension's tables, for comparisons, a line each.
sub rows_of
{
	my ($node, $dbname, @tables) = @_;

	@tables = qw(gig_subscription gig_subscription_secret gig_event_log
	  gig_delivery gig_account_sync gig_change)
	  if !@tables;
	return $node->safe_psql($dbname,
		"SET TimeZone = 'UTC';\n" . join '',
		map { "SELECT '$_', t::text FROM gigs.$_ AS t ORDER BY t::text COLLATE \"C\";\n" } @tables);
}

# Dice, for tests that draw what they do.
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
