# The receiver and its database: conflicts, errors, a server that is away, slow,
# restarted, killed or replaced.  What is answered with 200 is in the log, always.

use strict;
use warnings;

use FindBin;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigReceiver;
use GigTest;

my $node = start_node('database', { allows_streaming => 1 });
my $database = $node->connstr('postgres');

create_gigs($node, 'postgres');
$node->safe_psql('postgres', q{
	CREATE ROLE receiver LOGIN;
	SELECT gigs.grant_gig_receiver('receiver')});

# It tries to connect, without end, while it is to end.
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "could not listen: $!";
my $waiting = GigReceiver->new('host=127.0.0.1 connect_timeout=0 port=' . $silent->sockport);
$waiting->terminate;

my $locker = $node->background_psql('postgres');
my $receiver = GigReceiver->new("$database user=receiver", '--max-waiting', '20kB');
$receiver->wait_ready;


# ---------------------------------------------------------------------------
# Conflicts and errors
# ---------------------------------------------------------------------------

# A trigger makes the events of some accounts fail: 1 and 2 with an error that is
# worth another attempt, the first one only a few times; 3 and 4 with another error.
$node->safe_psql('postgres', q{
	CREATE SEQUENCE public.attempts;
	CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
		IF new.account_id = md5('account 1')::uuid AND nextval('public.attempts') <= 2
			OR new.account_id = md5('account 2')::uuid
		THEN
			RAISE SQLSTATE '40P01' USING message = 'deadlock';
		ELSIF new.account_id = md5('account 3')::uuid THEN
			RAISE 'body: %', convert_from(new.body, 'UTF8');
		ELSIF new.account_id = md5('account 4')::uuid THEN
			RAISE SQLSTATE '55P03' USING message = 'locked for too long';
		ELSIF new.account_id = md5('account 5')::uuid THEN
			RAISE SQLSTATE '53100' USING message = 'disk full';
		END IF;
		RETURN new;
	END $$;
	CREATE TRIGGER fail BEFORE INSERT ON gigs.gig_event_log FOR EACH ROW EXECUTE FUNCTION public.fail()});

is($receiver->post_hook(1, 1), '200 applied', 'a deadlock is tried again');
is($receiver->metric('gigs_receiver_retries_total'), 2, '... and counted');
is($receiver->post_hook(2, 1), 503, 'what always conflicts is answered with 503');
is($receiver->post_hook(3, 1), 503, '... and so is what the database refuses with another error');
is($receiver->metric('gigs_receiver_failures_total'), 1, '... which is counted');
like($receiver->log_text, qr/error: could not ingest: SQLSTATE P0001, see the server's log\n/, '... and logged');
unlike($receiver->log_text, qr/body:/, '... without the message, which may quote the body');

is($receiver->post_hook(4, 1), 503, 'what waits too long for a lock is answered with 503');

my @clients = ($receiver->hold_up($node, $locker, 9), $receiver->start_posts( map { signed_request(hook($_ % 7 ? 10 + $_ : 2 + $_ % 2, $_)) } 1 .. 40));
$receiver->wait_for_waiting(42);
ask($locker, 'COMMIT');
is_deeply([ map { answer_of($_) } @clients ],
	[ ('200 applied') x 2, map { $_ % 7 ? '200 applied' : 503 } 1 .. 40 ],
	'in a batch, only these fail');
cmp_ok($receiver->metric('gigs_receiver_batch_events_count'), '<', 35, '... and the others remain together');
is($receiver->metric('gigs_receiver_database_lost_total'), 0, 'no connection is lost by errors of events');

# A server that fails whatever is sent.
my $failing = GigReceiver->new($database);
$failing->wait_ready;
my $end = time + 2;
my %answers;
while (time < $end)
{
	$answers{ $failing->post_hook(5, 1) } = 1;
	sleep 0.01;
}
is(join(' ', keys %answers), 503, 'a full disk is answered with 503');
cmp_ok($failing->metric('gigs_receiver_database_connects_total'), '<', 15, '... and the server is left alone for a while');
$failing->stop;
$node->safe_psql('postgres', 'DROP TRIGGER fail ON gigs.gig_event_log');

# ---------------------------------------------------------------------------
# The queue
# ---------------------------------------------------------------------------

# Of the memory for bodies, the two that are held up take some.
my $large = hook(50, 1) . ' ' x 5_000;
my $huge = hook(50, 2) . ' ' x 30_000;
@clients = ($receiver->hold_up($node, $locker, 51), $receiver->start_posts( (signed_request($large)) x 3));
$receiver->wait_for_waiting(5);
my $socket = $receiver->connect;
print $socket signed_request($large);
my ($status, $header, $content) = read_answer($socket);
is($status, 503, 'a body for which there is no memory is answered with 503');
like($header, qr/^Retry-After: \d+\r$/m, '... and the time to come again');
print $socket request('');
$receiver->wait_for_waiting(6);
is($receiver->post($huge, sign($huge, 'secret')), 503, 'a body for which there never is, likewise');
is($receiver->metric('gigs_receiver_shed_total'), 2, '... and both are counted');
ask($locker, 'COMMIT');
is_deeply([ map { answer_of($_) } @clients, $socket ], [ ('200 applied') x 3, ('200 duplicate') x 2, 400 ],
	'what waits is ingested');
is($receiver->post($large, sign($large, 'secret')), '200 duplicate', '... and there is memory again');

# ---------------------------------------------------------------------------
# A server that is slow
# ---------------------------------------------------------------------------

# Under Valgrind, a session takes longer to open.
my $hurried = GigReceiver->new($database, '--answer-timeout', $PostgreSQL::Test::Utils::timeout_default > 600 ? '30s' : '1s');
$hurried->wait_ready;
ask($locker, 'BEGIN; LOCK TABLE gigs.gig_event_log IN EXCLUSIVE MODE');
@clients = $hurried->start_posts(map { signed_request(hook(53, $_)) } 1 .. 7);
is_deeply([ map { answer_of($_) } @clients ], [ (503) x 7 ], 'what waits too long is answered with 503');
ask($locker, 'COMMIT');
$hurried->wait_ready;
my $again;
$hurried->wait_for('to ingest', sub { ($again = $hurried->post_hook(53, 1)) ne '503' });
# It may have been sent to the server shortly before.
like($again, qr/^200 (applied|duplicate)$/, '... and may be sent again');
is($node->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE outcome = 'applied'
	AND body = } . bytea_literal(hook(53, 1))), 1, '... but is not applied twice');
$hurried->stop;

# ---------------------------------------------------------------------------
# A server that goes away
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'receiver'});
$receiver->wait_for('to lose its sessions', sub { $receiver->metric('gigs_receiver_database_lost_total') == 2 });
$receiver->wait_ready;
is($receiver->post_hook(60, 1), '200 applied', 'sessions that are terminated are replaced');

# A backend that is killed takes the others with it, and what they do.
@clients = ($receiver->hold_up($node, $locker, 61), $receiver->start_posts( map { signed_request(hook(62, $_)) } 1 .. 5));
$receiver->wait_for_waiting(7);
$node->stop('immediate');
eval { $locker->quit };
is_deeply([ map { answer_of($_) } @clients ], [ (503) x 7 ], 'webhooks that were under way are answered with 503');
is($receiver->post_hook(62, 1), 503, '... and so are others, while the server is away');
like($receiver->admin('/ready'), qr/^503/, '... and the receiver is not ready');
is($receiver->admin('/live'), "200 live\n", '... but lives');
is($receiver->metric('gigs_receiver_database_up'), 0, '... which metrics tell');
is($receiver->post('x' x 30_000), 503, '... and bodies that do not fit are refused');
my $late = GigReceiver->new($database);
is($late->post_hook(62, 1), 503, 'a receiver may start before the server');
$node->start;
$locker = $node->background_psql('postgres');
$_->wait_ready for $receiver, $late;
is($receiver->post_hook(62, 1), '200 applied', 'once the server is back, webhooks are ingested');
is($late->post_hook(62, 1), '200 duplicate', '... by both');
is($late->stop, 0, 'a receiver ends');

# ---------------------------------------------------------------------------
# A server that is demoted
# ---------------------------------------------------------------------------

# Its sessions stay, as they do when another server takes over.
$node->append_conf('postgresql.conf', 'default_transaction_read_only = on');
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('default_transaction_read_only') = 'on'});
is($receiver->post_hook(62, 2), 503, 'what is read-only does not ingest');
$receiver->wait_for('not to be ready', sub { $receiver->admin('/ready') =~ /^503/ });
$node->append_conf('postgresql.conf', 'default_transaction_read_only = off');
$node->reload;
$receiver->wait_ready;
is($receiver->post_hook(62, 2), '200 applied', '... until it is no more');

# ---------------------------------------------------------------------------
# A role that may not
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA gigs FROM receiver');
is($receiver->post_hook(63, 1), 503, 'without the privilege nothing is ingested');
$receiver->wait_for('not to be ready', sub { $receiver->admin('/ready') =~ /^503/ });
$receiver->wait_for('to say why', sub { $receiver->log_text =~ /error: the role may not ingest; use grant_gig_receiver\(\)\n/ });
$node->safe_psql('postgres', q{SELECT gigs.grant_gig_receiver('receiver')});
$receiver->wait_ready;
is($receiver->post_hook(63, 1), '200 applied', '... and with it again');
$receiver->wait_for('to have two sessions', sub {
	$node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'receiver'}) == 2 });
$node->safe_psql('postgres', 'REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA gigs FROM receiver');
$receiver->wait_for('not to be ready', sub { $receiver->admin('/ready') =~ /^503/ });
pass('... which is noticed without webhooks, too');
$node->safe_psql('postgres', q{SELECT gigs.grant_gig_receiver('receiver')});
is($receiver->stop, 0, 'a receiver without a session ends');

my $lost = GigReceiver->new($node->connstr('empty'));
$lost->wait_for('to miss the database', sub { $lost->log_text =~ /error: .*database "empty" does not exist\n/ });
$node->safe_psql('postgres', 'CREATE DATABASE empty');
$lost->wait_for('to miss the extension', sub { $lost->log_text =~ /error: the database has no extension "gigs_webhooks"\n/ });
is($lost->post_hook(63, 2), 503, 'without the extension nothing is ingested');
$node->safe_psql('empty', q{
	CREATE EXTENSION gigs_webhooks;
	SELECT create_gig_subscription('payroll', 'https://example.com/', 'secret')});
$lost->wait_ready;
is($lost->post_hook(63, 2), '200 applied', '... until it is created');
$lost->stop;

# ---------------------------------------------------------------------------
# A standby that is promoted
# ---------------------------------------------------------------------------

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;

my $both = GigReceiver->new(sprintf 'host=%s,%s port=%d,%d dbname=postgres', $standby->host, $node->host, $standby->port, $node->port);
$both->wait_ready;
is($both->post_hook(70, $_), '200 applied', 'of two servers, the one that can write is used') for 1 .. 3;
$node->wait_for_catchup($standby);
$locker->quit;
$node->stop('immediate');
is($both->post_hook(70, 4), 503, 'when it is gone, the standby is not enough');
$standby->promote;
$both->wait_ready;
is($both->post_hook(70, 4), '200 applied', '... until it is promoted');
is($both->post_hook(70, 3), '200 duplicate', '... and knows what was acknowledged');
is($both->stop, 0, 'the receiver ends');
is(troubles($standby, 'postgres'), '', 'log and accounts agree');
$standby->stop;
is($waiting->finish, 0, 'a receiver ends while it connects to a server that does not answer');

done_testing();
