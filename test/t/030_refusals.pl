# Refusals of webhooks that are not authentic: the server's log says what is wrong
# with the signature, while the client always gets the same message and 28000.
# What a stranger sends makes no line of its own in the log.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha512_base64);
use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# Statements are not logged, because they contain bodies.
my $node = start_node('refusals', 'log_error_verbosity = verbose');
my $body = payload('gigs.fully_synced');
my $name = 'name-for-the-webhook-subscription';
my $good = sign($body, 'secret');

(my $nobody = $body) =~ s/\Q$name/nobody/;
(my $unsigned = $body) =~ s/\Q$name/unsigned/;
(my $retired = $body) =~ s/\Q$name/retired/;
$node->safe_psql('postgres', qq{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('$name', 'https://example.com/', 'secret');
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('retired', 'https://example.com/', 'secret');
	SELECT gigs.retire_gig_secret('retired', 'secret');
	CREATE TABLE inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
});

# Returns what the client gets, and what the log says meanwhile.
sub refuse
{
	my ($sql) = @_;
	my $from = -s $node->logfile;
	my ($stdout, $stderr);

	$node->psql('postgres', $sql,
		stdout => \$stdout, stderr => \$stderr, extra_params => [ '-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=never' ]);
	$stderr =~ s/^psql:<stdin>:\d+: //mg;
	return ("$stdout$stderr", substr(slurp_file($node->logfile), $from));
}

# ---------------------------------------------------------------------------
# What is wrong with a signature
# ---------------------------------------------------------------------------

my $padded = hmac_sha512_base64($body, 'secret');
$padded .= '=' while length($padded) % 4;

my @wrong = (
	[ 'unknown name', $nobody, sign($nobody, 'secret'), 'No subscription is named "nobody".' ],
	[ 'unknown name, no signature', $nobody, undef, 'No subscription is named "nobody".' ],
	[ 'no signature', $body, undef, 'The signature is missing.' ],
	[ 'signature for an unsigned subscription', $unsigned, sign($unsigned, 'secret'),
		'The subscription has no secret, but there is a signature.' ],
	[ 'empty signature', $body, '', 'The signature is empty, or too long to be read.' ],
	[ 'prefix', $body, "sha512=$good", 'The signature has a prefix "sha512=".' ],
	[ 'prefix in upper case', $body, "SHA512=$good", 'The signature has a prefix "sha512=".' ],
	[ 'space before', $body, " $good", 'The signature begins or ends with white space.' ],
	[ 'line feed after', $body, "$good\n", 'The signature begins or ends with white space.' ],
	[ 'a digit short', $body, substr($good, 1), 'The signature has 127 hexadecimal digits instead of 128.' ],
	[ 'a digit long', $body, "${good}0", 'The signature has 129 hexadecimal digits instead of 128.' ],
	[ 'of SHA-256', $body, Digest::SHA::hmac_sha256_hex($body, 'secret'), 'The signature has 64 hexadecimal digits instead of 128.' ],
	[ 'base64', $body, $padded, 'The signature is base64 instead of hexadecimal.' ],
	[ 'not hexadecimal', $body, 'g' . substr($good, 1), 'The signature is not hexadecimal.' ],
	[ 'longer than is read', $body, 'f' x 5000, 'The signature is empty, or too long to be read.' ],
	[ 'of another secret', $body, sign($body, 'other'), 'The signature matches none of the subscription\'s valid secrets.' ],
	[ 'of another body', $body, sign("$body ", 'secret'), 'The signature matches none of the subscription\'s valid secrets.' ],
	[ 'of a retired secret', $retired, sign($retired, 'secret'), 'The signature matches none of the subscription\'s valid secrets.' ]);

for my $case (@wrong)
{
	my ($title, $wrong_body, $signature, $detail) = @$case;
	my $arguments = bytea_literal($wrong_body) . ', ' . text_literal($signature);
	my ($client, $log) = refuse("SELECT gigs.ingest_gig_event($arguments)");

	# The rest is the place in the source, which is the same for all.
	like($client, qr/^ERROR:  28000: could not authenticate webhook\nLOCATION:  ThrowGigError, error\.c:\d+$/,
		"$title: the client gets the message");
	like($log, qr/ERROR:  28000: could not authenticate webhook\n.*DETAIL:  \Q$detail\E\n/, '... and the log the reason');

	($client, $log) = refuse("SELECT * FROM gigs.try_ingest_gig_event($arguments)");
	is($client, 'rejected||||28000|could not authenticate webhook', '... a rejection says the same');
	like($log, qr/LOG:  28000: could not authenticate webhook\n.*DETAIL:  \Q$detail\E\n/, '... with its reason in the log');
}

# Every webhook of a batch has its line in the log, and so has every row.
my ($client, $log) = refuse('SELECT outcome, sqlstate, message FROM gigs.ingest_gig_events(ARRAY['
	  . join(', ', map { bytea_literal($_->[1]) } @wrong) . '], ARRAY['
	  . join(', ', map { text_literal($_->[2]) } @wrong) . '])');
is($client, join("\n", ('rejected|28000|could not authenticate webhook') x @wrong), 'a batch is rejected alike');
is(join("\n", $log =~ /DETAIL:  (.*)/g), join("\n", map { $_->[3] } @wrong), '... with all reasons in the log');
($client, $log) = refuse('INSERT INTO inbox (body, signature) VALUES '
	  . join(', ', map { '(' . bytea_literal($_->[1]) . ', ' . text_literal($_->[2]) . ')' } @wrong)
	  . ' RETURNING outcome, error');
is($client, join("\n", ('rejected|28000: could not authenticate webhook') x @wrong), 'rows of an inbox are rejected alike');
is(join("\n", $log =~ /DETAIL:  (.*)/g), join("\n", map { $_->[3] } @wrong), '... with all reasons in the log');

# ... without the statement, which holds all bodies, once for each of them.
for my $statement (
	'SELECT count(*) FROM gigs.ingest_gig_events(ARRAY[' . join(', ', (bytea_literal($body)) x 3) . '], NULL)',
	'DO $$ BEGIN PERFORM gigs.try_ingest_gig_event(' . bytea_literal($body) . ', NULL); END $$',
	'INSERT INTO inbox (body) VALUES (' . bytea_literal($body) . ')')
{
	(undef, $log) = refuse("SET log_min_error_statement = log; $statement");
	like($log, qr/LOG:  28000: could not authenticate webhook/, 'a rejection is logged');
	unlike($log, qr/STATEMENT:|CONTEXT:|\\x/, '... without the statement');
}

# What is authentic, and what is rejected for another reason, makes no such line.
($client, $log) = refuse('SELECT outcome FROM gigs.try_ingest_gig_event(' . bytea_literal($body) . ', ' . text_literal(uc $good) . ')');
is($client, 'applied', 'an authentic webhook is applied');
is($log, '', '... and not logged');
($client, $log) = refuse("SELECT outcome, sqlstate FROM gigs.try_ingest_gig_event('{'::bytea, NULL)");
is($client, 'rejected|22032', 'malformed JSON is rejected');
is($log, '', '... and not logged');

# ---------------------------------------------------------------------------
# Lines of a stranger's making
# ---------------------------------------------------------------------------

my $from = -s $node->logfile;
for my $odd ('x\\nLOG:  00000: forged', 'x\\r\\nFATAL: forged', '\\u001b[2J\\u0007', 'x\\u0000y', '\\u0085\\u009b2J', ('x' x 5000), 'forged %s %n')
{
	my $named = bytea_literal(qq({"event":"gigs.added","name":"$odd"}));
	my $unknown = bytea_literal(qq({"event":"gigs.$odd","name":"unsigned"}));

	refuse("SELECT gigs.try_ingest_gig_event($named, NULL)");
	refuse("SELECT gigs.ingest_gig_event($unknown, NULL)");
	refuse("SELECT gigs.ingest_gig_event($named, E'x\\nFATAL: forged')");
}
$log = substr slurp_file($node->logfile), $from;
like($log, qr/No subscription is named "x\?LOG:  00000: forged"/, 'names are quoted');
like($log, qr/No subscription is named "forged %s %n"/, '... as they are');
unlike($log, qr/^\s*(?:LOG|FATAL):.*forged/m, '... and make no line');
unlike($log, qr/[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]/, '... and bring no control character');
cmp_ok((sort { $b <=> $a } map { length } split /\n/, $log)[0], '<', 300, '... or a long line');

$node->stop;
done_testing();
