# Webhooks are UTF-8, whatever the database is in.

use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigTest;

# The server's messages as much as the client's text.
$ENV{PGCLIENTENCODING} = 'UTF8';

my $node = start_node('encoding');
my $account = '0187c66e-e7e5-811c-b006-2232f00f426a';
my $user = '018051aa-f7a9-a0db-2f38-6cfa325e9d69';

# A test's title, as bytes: the log of PostgreSQL 17's modules dies of anything
# else.
sub title { return encode('UTF-8', join '', @_) }

sub query
{
	my ($dbname, $query) = @_;

	return $node->safe_psql($dbname,
		encode('UTF-8', "SET search_path = gigs; $query"));
}

# A body in bytes; its parts are text.
my $bodies = 0;

sub body
{
	my (%parts) = @_;
	my $event = $parts{event} || '"gigs.fully_synced"';
	my $id = $parts{account} || "\"$account\"";
	my $from = $parts{from} || 'null';
	my $unread = $parts{unread} || '""';

	$bodies++;
	return encode('UTF-8',
		qq({"unread":$unread,"event":$event,"name":$parts{name},"data":{"account":$id,)
		  . qq("user":"$user","available_from":$from,"available_count":$bodies}}));
}

sub ingest
{
	my ($dbname, $body, $signature, $columns) = @_;

	return query($dbname,
		    'SELECT '
		  . ($columns || 'outcome, sqlstate')
		  . ' FROM try_ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal($signature)
		  . ')');
}

sub last_body
{
	my ($dbname) = @_;

	return query($dbname,
		"SELECT encode(body, 'hex') FROM gig_event_log ORDER BY event_id DESC LIMIT 1"
	);
}

my %databases =
  (utf8 => 'UTF8', latin1 => 'LATIN1', sql_ascii => 'SQL_ASCII');

for my $dbname (sort keys %databases)
{
	my $encoding = $databases{$dbname};

	$node->safe_psql('postgres',
		"CREATE DATABASE $dbname ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
	);
	$node->safe_psql($dbname,
		'CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs;');
	query($dbname, "SELECT create_gig_subscription('café', 'https://example.com/', 'clé')");

	# the name, in UTF-8 and escaped, and a key that is signed with in UTF-8
	for my $name ('"café"', '"caf\u00e9"', '"\u0063af\u00E9"')
	{
		my $body = body(name => $name);

		is(ingest($dbname, $body, sign($body, 'clé')),
			'applied|', title("$encoding: $name is found"));
		is(last_body($dbname), unpack('H*', $body), '... and logged');
		is( query(
				$dbname,
				"SELECT count(*) FROM gig_event_log WHERE name = 'café'"),
			query($dbname, 'SELECT count(*) FROM gig_event_log'),
			'... under its name');
		is(ingest($dbname, $body, Digest::SHA::hmac_sha512_hex($body, "cl\xe9")),
			'rejected|28000', '... with the key in UTF-8, not in LATIN1');
	}
	is(query($dbname, "SELECT sign_gig_event('café'::text, 'clé'::text)"),
		sign(encode('UTF-8', 'café'), 'clé'),
		"$encoding: text is signed in UTF-8");
	is( query(
			$dbname,
			"SELECT verify_gig_signature('café'::text, '"
			  . sign(encode('UTF-8', 'café'), 'clé')
			  . "', 'clé'::text)"),
		't',
		'... and verified');

	# what nobody reads may be in no encoding but UTF-8
	for my $unread ('"日本 € 😀"', '"\u65e5\u20ac\ud83d\ude00"',
		'"\u0000"', '"\ud800"', '{"日本\u20ac":["é\u0000"]}')
	{
		my $body = body(name => '"café"', unread => $unread);

		is(ingest($dbname, $body, sign($body, 'clé')),
			'applied|', title("$encoding: $unread is let pass"));
		is(last_body($dbname), unpack('H*', $body), '... byte for byte');
	}

	# names that the database can't spell
	for my $name ('"日本"', '"\u65e5\u672c"', '"caf\u20ac"', '"café€"')
	{
		my $body = body(name => $name);

		is( ingest(
				$dbname, $body,
				sign($body, 'clé'),
				'sqlstate, message'),
			'28000|could not authenticate webhook',
			title("$encoding: $name is nobody's"));
	}

	# another family, whatever it's called
	my $foreign = body(name => '"café"', event => '"日本.\u20ac"');
	is(ingest($dbname, $foreign, sign($foreign, 'clé')),
		'ignored|', "$encoding: another family is ignored");

	# what is no UTF-8 is no JSON either, even where nobody reads it
	for my $bytes ("\xe9", "\xff", "\xc0\xaf", "\xed\xa0\x80",
		"\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\0")
	{
		my $body = body(name => '"café"', unread => '"@"');

		$body =~ s/@/$bytes/;
		is( ingest($dbname, $body, sign($body, 'clé')),
			'rejected|22021',
			"$encoding: bytes " . unpack('H*', $bytes) . ' are refused');
	}

	# What a message quotes must be good in the database's encoding, or it
	# couldn't be dumped, and not even be sent.
	my %wrong = (
		account => [ '"é€日本😀"', '"é\u20ac"', '"\u0085\u001b"', '"' . '日' x 100 . '"' ],
		from => [ '"é€日本😀"', '"\u20ac"', '"x' . '😀' x 50 . '"' ],
		event => [ '"gigs.é€"', '"gigs.\u20ac"', '"gigs.' . 'é' x 200 . '"' ]);

	for my $part (sort keys %wrong)
	{
		for my $value (@{ $wrong{$part} })
		{
			my $body = body(name => '"café"', $part => $value);
			my $shown = substr $value, 0, 12;

			# convert_to() verifies nothing in a database in UTF8, nor from
			# SQL_ASCII: so its bytes are looked at here, too
			my $hex = ingest($dbname, $body, sign($body, 'clé'),
				"encode(convert_to(message, 'SQL_ASCII'), 'hex')");
			my $message = pack 'H*', $hex;

			like($message, qr/^invalid value for key "/,
				title("$encoding: $part $shown is refused"));
			if ($encoding eq 'UTF8')
			{
				ok(utf8::decode($message), '... with a message in UTF-8');
			}
			else
			{
				unlike($message, qr/[^ -~]/, '... with a message in ASCII');
			}
		}
	}

	# a message in a table, of JSON that is broken behind what is no ASCII
	query($dbname,
		'CREATE TABLE inbox (body text, signature text, outcome text, error varchar(60));'
		  . ' CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest()'
	);
	for my $broken ('{"é": é}', '{"name": "café", "x" é}', '{"é":"\é"}', '{"é":"é')
	{
		like(
			query($dbname,
				"INSERT INTO inbox VALUES ('$broken', NULL) RETURNING outcome, error"),
			qr/^rejected\|22032: malformed JSON/,
			title("$encoding: $broken is kept with its reason"));
	}
	is( query($dbname, "SELECT count(*) FROM inbox WHERE convert_to(error, 'UTF8') IS NOT NULL"),
		4,
		'... that can be read');

	# a body that comes as text was signed as UTF-8
	my $text = qq({"unread":"é","event":"gigs.fully_synced","name":"café","data":{"account":"$account","user":"$user","available_count":1}});
	is( query(
			$dbname,
			"INSERT INTO inbox VALUES ('$text', '"
			  . sign(encode('UTF-8', $text), 'clé')
			  . "') RETURNING outcome, error"),
		'applied|',
		"$encoding: text is ingested");
	is(last_body($dbname), unpack('H*', encode('UTF-8', $text)),
		'... and logged in UTF-8');
	is( query(
			$dbname,
			"SELECT ingest_gig_event('$text'::text, '"
			  . sign(encode('UTF-8', $text), 'clé')
			  . "')"),
		'duplicate',
		'... by every door');

	# what is logged can be read again
	is( query(
			$dbname,
			"SELECT count(*) FROM gig_event_history WHERE name = 'café' AND user_id = '$user'"
		),
		query($dbname, 'SELECT count(*) FROM gig_event_log'),
		"$encoding: the history has all");
	is(query($dbname, 'SELECT * FROM rebuild_gig_sync()'),
		'1|0', "$encoding: the account is rebuilt");
}

# A body is the same for all rows, and each has its own secret.
for my $dbname (sort keys %databases)
{
	my $body = '{"event":"gigs.added","name":"café"}';

	is( query(
			$dbname,
			"SELECT count(*), bool_and(sign_gig_event('$body'::text, s) = sign_gig_event('\\x"
			  . unpack('H*', encode('UTF-8', $body))
			  . "'::bytea, s)) FROM (SELECT repeat('s', 40 * n) FROM generate_series(1, 50) AS n) AS v (s)"),
		'50|t',
		"$dbname: a constant body is signed in each row");
}

# Where the database knows no encoding, a secret may be anything: it is good as
# it is, and no other subscription suffers from it.
query('sql_ascii', q{SELECT create_gig_subscription('bytes', 'https://example.com/', E'\\xff\\xc0')});
for my $name ('bytes', 'café')
{
	my $body = body(name => "\"$name\"");

	is( query(
			'sql_ascii',
			'SELECT outcome FROM try_ingest_gig_event('
			  . bytea_literal($body)
			  . ', sign_gig_event('
			  . bytea_literal($body)
			  . ($name eq 'bytes' ? ", '\\xffc0'::bytea))" : ", 'clé'::text))")
		),
		'applied',
		"sql_ascii: $name is known beside a secret that is no UTF-8");
}

$node->stop;

# The log's details quote what was sent as well; and must not show a key.
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
like($log, qr/DETAIL:  No subscription is named "caf/, 'the log says why');
unlike($log, qr/cl\xc3\xa9/, '... and shows no key in UTF-8');
unlike($log, qr/cl\xe9/, '... or in LATIN1');

done_testing();
