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

my %databases = (
	utf8 => 'UTF8',
	latin1 => 'LATIN1',
	win1252 => 'WIN1252',
	euc_jp => 'EUC_JP',
	sql_ascii => 'SQL_ASCII');

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

# Text that has no form in UTF-8: its bytes, and what an error shows of them.
my %formless = (
	win1252 => [ '\x81', '0x81' ],
	euc_jp => [ '\xa9\xa1', '0xa9' ],
	sql_ascii => [ '\xff\xfe', '0xff' ]);

for my $dbname (sort keys %formless)
{
	my ($bytes, $shown) = @{ $formless{$dbname} };
	my $wrong = q('{"unread":"ä' || c || '"}');
	my $message = 'invalid byte sequence for encoding "UTF8" at byte '
	  . length(encode('UTF-8', '{"unread":"ä')) . ": $shown";
	my $good = body(name => '"café"');
	my $refused = sub {
		my ($what, $statement, $error) = @_;
		my (undef, undef, $stderr) = $node->psql($dbname,
			encode('UTF-8', "SET search_path = gigs; $statement FROM formless"),
			extra_params => [ '-v', 'VERBOSITY=verbose' ]);

		like($stderr, $error, "$dbname: $what is refused");
		unlike($stderr, qr/CONFIDENTIAL/, '... and not shown');
	};

	query($dbname,
		"SET client_encoding = $databases{$dbname}; CREATE TABLE formless AS SELECT E'$bytes'::text AS c"
	);
	is( query($dbname, "SELECT sqlstate, message FROM formless, try_ingest_gig_event($wrong, NULL)"),
		"22021|$message",
		"$dbname: a body without UTF-8 comes back rejected");
	$refused->('a body', "SELECT ingest_gig_event($wrong, NULL)", qr/ERROR:  22021: \Q$message\E/);
	$refused->('what is parsed', "SELECT parse_gig_event($wrong)", qr/ERROR:  22021: \Q$message\E/);

	# it keeps no row of an inbox waiting, neither itself nor those behind it
	query($dbname, qq(
		CREATE TABLE hooks (id int, body text, signature text, outcome text, error text);
		INSERT INTO hooks SELECT 1, $wrong FROM formless;
		INSERT INTO hooks SELECT 2, convert_from(b, 'UTF8'), sign_gig_event(b, 'clé') FROM (SELECT @{[ bytea_literal($good) ]}::bytea) AS v (b);
		CALL drain_gig_inbox('hooks');
		CREATE TRIGGER ingest BEFORE INSERT ON hooks FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
		INSERT INTO hooks SELECT id + 2, body, signature FROM hooks ORDER BY id;
	));
	is( query($dbname, 'SELECT outcome, error FROM hooks ORDER BY id'),
		"rejected|22021: $message\napplied|\nrejected|22021: $message\nduplicate|",
		"$dbname: an inbox goes on behind such a body");

	$refused->('such a name',
		q(SELECT create_gig_subscription('n' || c, 'https://example.com/')),
		qr/ERROR:  (22P05|22021): /);
	next if $dbname eq 'sql_ascii';

	for my $call (
		q(create_gig_subscription('fresh', 'https://example.com/', 'CONFIDENTIAL' || c)),
		q(add_gig_secret('café', 'CONFIDENTIAL' || c)),
		q(sign_gig_event('{}'::text, 'CONFIDENTIAL' || c)),
		q(verify_gig_signature('{}'::text, '00', 'CONFIDENTIAL' || c)))
	{
		$refused->(title($call), "SELECT $call",
			qr/ERROR:  22P05: secret has no form in UTF-8 from byte 12 on/);
	}
	$refused->('a body that is to be signed',
		"SELECT sign_gig_event($wrong, 'clé')",
		qr/ERROR:  22P05: webhook body has no form in UTF-8 from byte 1\d on/);

	# what is put in by hand closes no other subscription, and opens none
	query($dbname, q(
		INSERT INTO gig_subscription (name, url, events) SELECT n, 'https://example.com/', '{*}' FROM formless, unnest(ARRAY['café' || c, 'hard']) AS n;
		INSERT INTO gig_subscription_secret (name, secret) SELECT n, 'CONFIDENTIAL' || c FROM formless, unnest(ARRAY['café' || c, 'café', 'hard']) AS n;
	));
	my $hard = body(name => '"hard"');
	$good = body(name => '"café"');
	is(ingest($dbname, $good, sign($good, 'clé')),
		'applied|', "$dbname: a subscription works beside a secret and a name without UTF-8");
	for my $signature (undef, sign($hard, ''), sign($hard, 'CONFIDENTIAL'))
	{
		is(ingest($dbname, $hard, $signature),
			'rejected|28000', '... and nobody signs with such a secret');
	}
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
