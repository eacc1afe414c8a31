# Inboxes that are foreign tables: the trigger ingests what is inserted into them,
# and drain_gig_inbox() refuses them, because another server commits for itself.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('foreign_inbox');
my @missing = grep {
	$node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = '$_'") eq '0'
} 'postgres_fdw', 'file_fdw';

plan skip_all => "@missing: not installed" if @missing;

sub query
{
	my ($query) = @_;

	return $node->safe_psql('postgres', "SET search_path = gigs; $query");
}

sub unsigned
{
	my ($n) = @_;

	return qq({"event":"gigs.fully_synced","name":"unsigned","data":{"account":"00000000-0000-4000-8000-000000000002",)
	  . qq("user":"00000000-0000-4000-9000-000000000001","available_count":$n}});
}

sub account
{
	return query('SELECT available_count, events FROM gig_account_sync');
}

$node->safe_psql('postgres', 'CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs; CREATE DATABASE elsewhere');
query("SELECT create_gig_subscription('unsigned', 'https://example.com/')");
$node->safe_psql('elsewhere',
	'CREATE TABLE hook (body text, signature text, outcome text, error text, id int CHECK (id <> 3)); CREATE TABLE part (LIKE hook)');
query(sprintf q{
	CREATE EXTENSION postgres_fdw SCHEMA public;
	CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'elsewhere');
	CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere;
	CREATE FOREIGN TABLE public.hook (body text, signature text, outcome text, error text, id int) SERVER elsewhere;
	CREATE TRIGGER ingest BEFORE INSERT ON public.hook FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
	CREATE EXTENSION file_fdw SCHEMA public;
	CREATE SERVER file FOREIGN DATA WRAPPER file_fdw;
	CREATE FOREIGN TABLE public.file (body text, signature text) SERVER file OPTIONS (filename '/dev/null');
	CREATE TRIGGER ingest BEFORE INSERT ON public.file FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
}, $node->host, $node->port);

query("INSERT INTO public.hook (id, body) VALUES (1, '" . unsigned(1) . "'), (2, '{}')");
is( $node->safe_psql('elsewhere', 'SELECT id, outcome, left(error, 5) FROM hook ORDER BY id'),
	"1|applied|\n2|rejected|22023", 'rows of a foreign table have outcomes');
is(account(), '1|1', '... and are ingested here');
like(answer($node, 'postgres', "INSERT INTO public.hook (id, body) VALUES (3, '" . unsigned(3) . "')"),
	qr/^23514 .*violates check constraint/, 'a row is refused by the other server');
is(account(), '1|1', '... and its event is rolled back here');
query("INSERT INTO public.hook (id, body) SELECT 10 + i, replace('" . unsigned(1) . "', 'count\":1', 'count\":' || i) FROM generate_series(4, 6) AS i");
is(account(), '6|4', 'many rows are ingested');

query(q{
	CREATE TABLE public.parts (body text, signature text, outcome text, error text, id int) PARTITION BY LIST (id);
	CREATE TABLE public.here PARTITION OF public.parts FOR VALUES IN (1);
	CREATE FOREIGN TABLE public.there PARTITION OF public.parts FOR VALUES IN (2) SERVER elsewhere OPTIONS (table_name 'part')});
query("INSERT INTO public.parts (id, body) SELECT i, replace('" . unsigned(1) . "', 'count\":1', 'count\":5' || i) FROM generate_series(1, 2) AS i");
for my $inbox ('hook', 'parts', 'there')
{
	like(answer($node, 'postgres', "CALL gigs.drain_gig_inbox('public.$inbox')"),
		qr/^42809 cannot drain "(public\.)?$inbox"$/, "$inbox: is not drained");
}
is(query('SELECT count(outcome) FROM public.parts'), '0', '... also not in part');
is(account(), '6|4', '... and nothing of it is ingested');
is(answer($node, 'postgres', "CALL gigs.drain_gig_inbox('public.here')"), '1|0', 'the partition that is here is drained by itself');
is(account(), '51|5', '... and ingested');

like(answer($node, 'postgres', "INSERT INTO public.file VALUES ('" . unsigned(99) . "')"),
	qr/cannot insert into foreign table/, 'a file takes no rows');
is(account(), '51|5', '... and no event');

$node->stop;
done_testing();
