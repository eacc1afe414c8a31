# Replaces tables of the extension by partitioned ones, and makes databases with
# objects that users have added.

package GigTables;

use strict;
use warnings;

use Exporter qw(import);
use FindBin;

use lib $FindBin::RealBin;
use GigMix;
use GigTest;

our @EXPORT = qw(@hot_tables replace_table create_template built);

our @hot_tables = ('gig_event_log', 'gig_account_sync');

# Returns the SQL that puts a table partitioned by account in the place of one of
# the extension's, or an ordinary one again if "partitions" is 0.
sub replace_table
{
	my ($table, $partitions) = @_;
	my $key = $table eq 'gig_event_log' ? 'event_id, account_id' : 'account_id';
	my $sequence = 'gig_event_log_event_id_seq';
	my $sql = "BEGIN; LOCK TABLE gigs.$table;\n";

	# views depend on the table, not on its name
	$sql .= "CREATE TEMP TABLE views ON COMMIT DROP AS SELECT viewname, definition FROM pg_views WHERE schemaname = 'gigs';\n";
	if ($table eq 'gig_event_log')
	{
		$sql .= "ALTER EXTENSION gigs_webhooks DROP SEQUENCE gigs.$sequence;\n"
		  . "ALTER SEQUENCE gigs.$sequence RENAME TO old_sequence;\n";
	}
	$sql .= "ALTER EXTENSION gigs_webhooks DROP TABLE gigs.$table;\n"
	  . "ALTER TABLE gigs.$table RENAME TO old_table;\n"
	  . "CREATE TABLE gigs.$table (LIKE gigs.old_table INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING STORAGE"
	  . ($partitions
		? ") PARTITION BY HASH (account_id);\n" . join '',
		map { "CREATE TABLE gigs.${table}_$_ PARTITION OF gigs.$table FOR VALUES WITH (MODULUS $partitions, REMAINDER $_);\n" } 0 .. $partitions - 1
		: ");\n");
	$sql .= "INSERT INTO gigs.$table OVERRIDING SYSTEM VALUE SELECT * FROM gigs.old_table;\n"
	  . "ALTER TABLE gigs.$table ADD PRIMARY KEY ($key);\n"
	  . "ALTER EXTENSION gigs_webhooks ADD TABLE gigs.$table;\n";
	if ($table eq 'gig_event_log')
	{
		$sql .= "SELECT setval('gigs.$sequence', nextval('gigs.old_sequence')) \\g /dev/null\n"
		  . "ALTER EXTENSION gigs_webhooks ADD SEQUENCE gigs.$sequence;\n";
	}
	$sql .= q{DO $$
		DECLARE
			v record;
		BEGIN
			FOR v IN SELECT * FROM views LOOP
				EXECUTE format('CREATE OR REPLACE VIEW gigs.%I AS %s', v.viewname, v.definition);
			END LOOP;
		END $$;
		DROP TABLE gigs.old_table;
		COMMIT;
	};
	return $sql;
}

# Creates a database "template" with the extension and the webhooks of GigMix.
sub create_template
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'CREATE DATABASE template');
	create_gigs($node, 'template');
	create_mix($node, 'template');
	$node->safe_psql('template', 'CREATE EXTENSION amcheck');
	return;
}

# Creates a database like that, with objects that a user has added.
my $nbuilt = 0;

sub built
{
	my ($node, $sql) = @_;
	my $dbname = 'built_' . ++$nbuilt;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname TEMPLATE template");
	$node->safe_psql($dbname, "SET client_min_messages = warning; $sql");
	return $dbname;
}

1;
