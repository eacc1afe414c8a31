# Encodings: webhooks are UTF-8, and so must the database be.  Clients may have
# another encoding, and the server's messages another language.

use strict;
use warnings;
use utf8;

use Encode qw(decode encode);
use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

$ENV{PGCLIENTENCODING} = 'UTF8';

# Test::More writes titles as bytes.
sub title { return encode('UTF-8', join '', @_) }

# The messages of this server are in German if they are installed.  gettext
# ignores LANGUAGE in the locale "C" only.
my ($locale) = grep { /^C\.utf-?8$/i } split /\n/, `locale -a`;
my $node;
{
	local $ENV{LANGUAGE} = 'de';
	$node = start_node('encoding', $locale ? "lc_messages = '$locale'" : ());
}

sub query
{
	my ($query, %options) = @_;

	return $node->safe_psql('postgres', encode($options{encoding} || 'UTF-8', "SET search_path = gigs; $query"));
}

# ---------------------------------------------------------------------------
# Databases in other encodings
# ---------------------------------------------------------------------------

for my $encoding ('LATIN1', 'EUC_JP', 'SQL_ASCII')
{
	my $dbname = lc $encoding;
	my $stderr;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$node->psql($dbname, 'CREATE EXTENSION gigs_webhooks',
		stderr => \$stderr, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($stderr, qr/0A000: extension "gigs_webhooks" does not support database encoding "$encoding"/,
		"$encoding: the extension is refused");
	like($stderr, qr/ Create the database with ENCODING 'UTF8'\./, '... with a hint');
	is($node->safe_psql($dbname, "SELECT count(*) FROM pg_class WHERE relname LIKE 'gig%'"), '0', '... and creates nothing');
}

# ---------------------------------------------------------------------------
# Names, secrets and text that are not ASCII
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs');
query("SELECT create_gig_subscription('café', 'https://example.com/', 'clé')");

my $bodies = 0;

# A body in bytes; its parts are text.
sub body
{
	my (%parts) = (name => '"café"', unread => '""', event => '"gigs.fully_synced"',
		account => '"0187c66e-e7e5-811c-b006-2232f00f426a"', from => 'null', @_);

	$bodies++;
	return encode('UTF-8',
		qq({"unread":$parts{unread},"event":$parts{event},"name":$parts{name},"data":{"account":$parts{account},)
		  . qq("user":"018051aa-f7a9-a0db-2f38-6cfa325e9d69","available_from":$parts{from},"available_count":$bodies}}));
}

sub ingest
{
	my ($body, $signature, $columns) = @_;

	return query('SELECT ' . ($columns || 'outcome, sqlstate') . ' FROM try_ingest_gig_event('
		  . bytea_literal($body) . ', ' . text_literal($signature) . ')');
}

sub last_body
{
	return query("SELECT encode(body, 'hex') FROM gig_event_log WHERE body IS NOT NULL ORDER BY event_id DESC LIMIT 1");
}

for my $name ('"café"', '"caf\u00e9"', '"\u0063af\u00E9"')
{
	my $body = body(name => $name);

	is(ingest($body, sign($body, 'clé')), 'applied|', title("$name is found"));
	is(last_body(), unpack('H*', $body), '... and its body logged byte for byte');
	is(ingest($body, Digest::SHA::hmac_sha512_hex($body, "cl\xe9")),
		'rejected|28000', '... if it is signed with the secret in UTF-8, not in LATIN1');
}
is(query('SELECT DISTINCT name FROM gig_event_log'), encode('UTF-8', 'café'), 'all are logged under one name');

# A client's encoding is not that of the webhook.
for my $encoding ('LATIN1', 'WIN1252', 'UTF8')
{
	my $text = decode('UTF-8', body(unread => '"déjà"'));
	my $signature = sign(encode('UTF-8', $text), 'clé');
	my $perl_name = { LATIN1 => 'iso-8859-1', WIN1252 => 'cp1252', UTF8 => 'UTF-8' }->{$encoding};

	is( query("SET client_encoding = $encoding; SELECT sign_gig_event('$text'::text, 'clé'::text)", encoding => $perl_name),
		$signature, "$encoding: text is signed in UTF-8");
	is( query("SET client_encoding = $encoding; SELECT ingest_gig_event('$text'::text, '$signature')", encoding => $perl_name),
		'applied', '... and ingested');
	is(last_body(), unpack('H*', encode('UTF-8', $text)), '... and logged in UTF-8');
	is(ingest(encode('UTF-8', $text), $signature), 'duplicate|', '... and is the same event as its bytes');
}

# ---------------------------------------------------------------------------
# Bytes that are not UTF-8, and messages that quote them
# ---------------------------------------------------------------------------

for my $bytes ("\xe9", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\0")
{
	my $body = body(unread => '"@"');

	$body =~ s/@/$bytes/;
	is(ingest($body, sign($body, 'clé')), 'rejected|22021', 'bytes ' . unpack('H*', $bytes) . ' are refused');
}

# The longest that a message quotes may end within a character.
my %wrong = (
	account => [ '"é€日本😀"', '"é\u20ac"', '"\u0085\u001b"', map { '"' . 'x' x $_ . '日' x 100 . '"' } 0 .. 2 ],
	from => [ '"é€日本😀"', map { '"' . 'x' x $_ . '😀' x 50 . '"' } 0 .. 3 ],
	event => [ '"gigs.é€"', map { '"gigs.' . 'x' x $_ . 'é' x 200 . '"' } 0 .. 1 ]);

for my $part (sort keys %wrong)
{
	for my $value (@{ $wrong{$part} })
	{
		my $body = body($part => $value);
		my $shown = substr $value, 0, 12;
		my ($outcome, $hex) = split /\|/,
		  ingest($body, sign($body, 'clé'), "outcome, encode(convert_to(message, 'SQL_ASCII'), 'hex')");
		my $message = pack 'H*', $hex;

		is($outcome, 'quarantined', title("$part $shown: is quarantined"));
		ok(utf8::decode($message), '... with a message in UTF-8');
		unlike($message, qr/[\x00-\x1f\x7f-\x9f]/, '... without control characters');
		like($message, qr/[^\x00-\x7f]/, '... that quotes the rest') if $value !~ /0085/;
	}
}

# A message of the server's JSON parser, which is translated, in a column
query('CREATE TABLE inbox (body text, signature text, outcome text, error varchar(60));'
	  . ' CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest()');
for my $broken ('{"é": é}', '{"name": "café", "x" é}', '{"é":"\é"}', '{"é":"é')
{
	like(query("INSERT INTO inbox VALUES ('$broken', NULL) RETURNING outcome, error"),
		qr/^rejected\|22032: malformed JSON/, title("$broken is kept with its reason"));
}
is(query("SELECT count(*) FROM inbox WHERE convert_to(error, 'UTF8') IS NOT NULL"), 4, '... that can be read');

# ---------------------------------------------------------------------------
# Messages in another language
# ---------------------------------------------------------------------------

SKIP:
{
	my $ours = 'invalid value for key "data.account": invalid UUID "nichts"';
	my $body = body(account => '"nichts"');
	my (undef, undef, $stderr) = $node->psql('postgres', 'SELECT 1/0');

	skip 'the server has no German messages', 4 if $stderr !~ /durch Null/;
	is(ingest($body, sign($body, 'clé'), 'outcome, sqlstate, message'),
		"quarantined|22P02|$ours", 'the language changes nothing in outcomes');
	is(query('SELECT kept FROM retry_gig_quarantine((SELECT max(quarantine_id) FROM gig_quarantine))'),
		'1', '... and in trying them again');
	is( query("INSERT INTO inbox SELECT convert_from(b, 'UTF8'), sign_gig_event(b, 'clé') FROM (VALUES ("
			  . bytea_literal(body()) . ')) AS v (b) RETURNING outcome'),
		'applied', '... the trigger works');
	is(query('SELECT * FROM rebuild_gig_sync()'), '1|0', '... and rebuilding');
}

$node->stop;

my $log = slurp_file($node->logfile);
unlike($log, qr/cl\xc3\xa9|cl\xe9/, 'the log shows no secret');

done_testing();
