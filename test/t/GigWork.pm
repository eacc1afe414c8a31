# What the processes of GigClients do until their server crashes: ingest, work for
# a consumer, and maintain the database.  GigClients describes the notes.

package GigWork;

use strict;
use warnings;

use FindBin;

use lib $FindBin::RealBin;
use GigTest qw(:dice);

# ---------------------------------------------------------------------------
# Items
# ---------------------------------------------------------------------------

sub new_id
{
	my ($self) = @_;

	return join '.', $self->{who}, $self->{round}, ++$self->{number};
}

# Returns what is sent next: a new event, one that all clients send, one that was
# sent before, whatever became of it, or a forgery.
sub next_item
{
	my ($self, $entry, $must_be_new) = @_;
	my $how = $must_be_new ? 1 : rand;
	my $mine = $self->{sent}{ $self->{who} };
	my %item = (entry => $entry, mark => ':');

	if ($how < 0.03)
	{
		@item{qw(mark id)} = ('!', new_id($self));
	}
	elsif ($how < 0.2 && @$mine)
	{
		my $back = between(1, chance(0.7) && @$mine > 30 ? 30 : scalar @$mine);

		$item{id} = $mine->[ -$back ];
	}
	elsif ($how < 0.3)
	{
		$item{id} = join '.', 'all', $self->{round}, between(1, 40);
	}
	else
	{
		@item{qw(mark id)} = ('+', new_id($self));
		push @$mine, $item{id};
	}
	return \%item;
}

# Returns items of which at least one is new if there are several, so that the
# tables tell whether they have been ingested.
sub next_items
{
	my ($self, $entry, $n, $must_be_new) = @_;

	return shuffled(
		map { next_item($self, $entry, $_ == 1 && ($n > 1 || $must_be_new)) } 1 .. $n);
}

sub as_noted { my ($item) = @_; return join '', @$item{qw(entry mark id)} }

# ---------------------------------------------------------------------------
# Entry points
# ---------------------------------------------------------------------------

sub batch_step
{
	my ($self, $must_be_new, @more) = @_;
	my @items = next_items($self, 'f', between(2, chance(0.05) ? 300 : 25), $must_be_new);
	my @literals = map { [ $self->item_literals($_) ] } @items;

	return {
		items => \@items,
		sql => sprintf(
			'SELECT outcome, event_id FROM gigs.ingest_gig_events(%s) ORDER BY ord',
			join ', ',
			'ARRAY[' . join(',', map { $_->[0] } @literals) . ']',
			'ARRAY[' . join(',', map { $_->[1] } @literals) . ']',
			map { my $value = $_; 'ARRAY[' . join(',', map { $value->() } @items) . ']::timestamptz[]' } @more)
	};
}

# A time within the dedupe window.
sub random_time
{
	return chance(0.2) ? 'NULL' : sprintf "now() - '%d seconds'::interval", rand 36_000;
}

sub insert_step
{
	my ($self, $entry, $table, $place, @items) = @_;

	return {
		items => \@items,
		sql => "INSERT INTO $table (unit, place, body, signature, received_at) VALUES "
		  . join(', ', map {
				sprintf "('%s', %d, %s, %s, %s)", $self->{unit}, $place++,
				  $self->item_literals($_), random_time()
			} @items)
		  . ($entry eq 'x' ? ' RETURNING outcome' : '')
	};
}

# A statement of each entry point: its items, its SQL, and the rows of a COPY.
# The caller may demand a new item; the place is that of the first item in the
# unit.
my %entries = (
	ingest => sub {
		my ($self, $must_be_new) = @_;
		my $item;

		# a forgery would be an error
		do { $item = next_item($self, 'f', $must_be_new) } until $item->{mark} ne '!';
		return {
			items => [$item],
			sql => sprintf('SELECT gigs.ingest_gig_event(%s, %s)', $self->item_literals($item))
		};
	},
	try => sub {
		my ($self, $must_be_new) = @_;
		my $item = next_item($self, 'f', $must_be_new);

		return {
			items => [$item],
			sql => sprintf('SELECT outcome, event_id FROM gigs.try_ingest_gig_event(%s, %s)',
				$self->item_literals($item))
		};
	},
	batch => sub { my ($self, $must_be_new) = @_; return batch_step($self, $must_be_new) },
	archive => sub {
		my ($self, $must_be_new) = @_;

		return batch_step($self, $must_be_new, \&random_time);
	},
	insert => sub {
		my ($self, $must_be_new, $place) = @_;

		return insert_step($self, 'x', 'inbox', $place,
			next_items($self, 'x', between(1, 6), $must_be_new));
	},
	copy => sub {
		my ($self, $must_be_new, $place) = @_;
		my @items = next_items($self, 'x', between(1, 20), $must_be_new);

		return {
			items => \@items,
			sql => 'COPY inbox (unit, place, body, signature) FROM STDIN',
			copy => join '',
			map {
				my $body = $self->delivery_of($_->{id})->{sent};

				join("\t", $self->{unit}, $place++, '\\\\x' . unpack('H*', $body),
					GigClients::signature_of($_, $body))
				  . "\n"
			} @items
		};
	},
	backlog => sub {
		my ($self, $must_be_new, $place) = @_;

		return insert_step($self, 'b', chance(0.5) ? 'backlog' : "backlog_$self->{who}",
			$place, next_items($self, 'b', between(1, 15), $must_be_new));
	});
my @entry_names = sort keys %entries;

sub any_step
{
	my ($self, @more) = @_;

	return $entries{ pick(@entry_names) }->($self, @more);
}

# Runs a statement.  Returns its outcomes, as many as items, or nothing if it
# failed, which is noted.
sub run_step
{
	my ($self, $step) = @_;
	my $answer = $self->query($step->{sql}, copy => $step->{copy});

	if (defined $answer->{sqlstate})
	{
		$self->note_down('R', $self->{unit}, "$answer->{sqlstate} $answer->{message}");
		return;
	}
	return map {
		my $row = $answer->{rows}[$_];

		$row ? join ' ', grep { defined } @$row : '-';
	} 0 .. $#{ $step->{items} };
}

# ---------------------------------------------------------------------------
# Ingesting
# ---------------------------------------------------------------------------

sub finish_unit
{
	my ($self, $items, $outcomes) = @_;

	$self->note_down('A', $self->{unit}, @$outcomes);
	$self->acknowledged(scalar grep { $_->{entry} ne 'b' && $_->{mark} ne '!' } @$items);
	return;
}

sub single_statement
{
	my ($self, $leaves) = @_;
	my $step = any_step($self, 0, 0);

	$self->note_down('C', $self->{unit}, map { as_noted($_) } @{ $step->{items} });
	return $self->send_and_leave(@$step{qw(sql copy)}) if $leaves;
	my @outcomes = run_step($self, $step) or return;
	finish_unit($self, $step->{items}, \@outcomes);
	return;
}

# Returns the statements of a transaction, some of which are rolled back, and the
# items of the others.
sub transaction_steps
{
	my ($self) = @_;
	my @steps = { sql => pick('BEGIN', 'BEGIN', 'BEGIN', 'BEGIN ISOLATION LEVEL REPEATABLE READ') };
	my @items;

	for (1 .. between(2, 5))
	{
		if (chance(0.15))
		{
			push @steps, { sql => 'SAVEPOINT s' },
			  { %{ any_step($self, 0, 1000) }, undone => 1 },
			  { sql => 'ROLLBACK TO s' };
			next if @items;
		}
		my $step = any_step($self, !@items, scalar @items);

		push @items, @{ $step->{items} };
		push @steps,
		  chance(0.15) ? ({ sql => 'SAVEPOINT s' }, $step, { sql => 'RELEASE s' }) : $step;
	}
	return (\@steps, \@items);
}

# Runs a transaction, which may be rolled back or prepared in the end.
sub transaction
{
	my ($self, $leaves) = @_;
	my ($steps, $items) = transaction_steps($self);
	my $undo = chance(0.1);
	my @outcomes;

	$self->note_down($undo ? 'U' : 'C', $self->{unit}, map { as_noted($_) } @$items);
	for my $step (@$steps)
	{
		if (!$step->{items})
		{
			$self->query($step->{sql});
			next;
		}
		my @of_step = run_step($self, $step);

		if (!@of_step)
		{
			$self->query('ROLLBACK');
			return;
		}
		push @outcomes, @of_step if !$step->{undone};
	}
	if ($undo)
	{
		$self->query('ROLLBACK');
		$self->note_down('R', $self->{unit}, 'rolled back');
		return;
	}
	return $self->send_and_leave('COMMIT') if $leaves;
	commit($self, $self->{unit});
	finish_unit($self, $items, \@outcomes);
	return;
}

# Commits, in two phases at times.
sub commit
{
	my ($self, $gid) = @_;
	my @statements =
	  chance($self->{prepares})
	  ? ("PREPARE TRANSACTION '$gid'", "COMMIT PREPARED '$gid'")
	  : ('COMMIT');

	for my $sql (@statements)
	{
		my $answer = $self->query($sql);

		die "$sql: " . ($answer->{message} || $answer->{tag})
		  if $sql !~ /^\Q$answer->{tag}\E/ || $answer->{tag} eq '';
		next if $sql !~ /^PREPARE/;
		$self->note_down('P', $gid);
		select undef, undef, undef, rand $self->{pause} if chance(0.5);
	}
	return;
}

sub drain
{
	my ($self, $leaves) = @_;
	my $table = chance(0.5) ? 'backlog' : "backlog_$self->{who}";
	my $call = sprintf "CALL gigs.drain_gig_inbox('%s', batch => %d%s)", $table,
	  between(3, 30), chance(0.5) ? ", received_at => 'received_at'" : '';
	my $drained = 0;

	$self->note_down('D', $self->{unit}, $table);
	return $self->send_and_leave($call) if $leaves;
	my $answer = $self->query(
		$call,
		on_notice => sub {
			my ($n, $rejected) =
			  $_[0] =~ /^rows drained from "$table": (\d+), rejected: (\d+)$/
			  or return;

			$self->note_down('N', $self->{unit}, $n, $rejected);
			$self->acknowledged($n - $rejected - $drained);
			$drained = $n - $rejected;
		});
	if (defined $answer->{sqlstate})
	{
		$self->note_down('R', $self->{unit}, "$answer->{sqlstate} $answer->{message}");
	}
	else
	{
		$self->note_down('A', $self->{unit});
	}
	return;
}

# A client: what an earlier round has left in the backlogs comes first.
sub ingest
{
	my ($self) = @_;
	my $mine = $self->{sent}{ $self->{who} };

	for (my $units = 1;; $units++)
	{
		my $known = @$mine;
		my $leaves = chance(0.05);
		my $how = rand;

		$self->{unit} = join '.', $self->{who}, $self->{round}, $units;
		if ($units == 1 || $how < 0.1)
		{
			drain($self, $leaves);
		}
		elsif ($how < 0.35)
		{
			transaction($self, $leaves);
		}
		else
		{
			single_statement($self, $leaves);
		}
		# Only if these are not sent again, the tables tell in the end whether
		# they have been ingested.
		$#$mine = $known - 1 if $leaves;
	}
	return;
}

# ---------------------------------------------------------------------------
# Working for a consumer
# ---------------------------------------------------------------------------

# Runs a statement of a worker.  Returns its rows, or nothing if it failed.
sub try_query
{
	my ($self, $sql) = @_;
	my $answer = $self->query($sql);

	return $answer->{rows} if !defined $answer->{sqlstate};
	$self->note_down('R', 'work', "$answer->{sqlstate} $answer->{message}");
	$self->query('ROLLBACK');
	return;
}

# A worker, which stores the number of events as the result of its work, in the
# transaction that finishes the batch.  It leaves some batches unfinished, and
# exceeds the lease of others.
sub consume
{
	my ($self) = @_;

	while (1)
	{
		my $rows = try_query($self,
			    'SELECT batch, account_id, events FROM gigs.read_gig_work('
			  . "'fetch', " . between(1, 60) . ', '
			  . pick("'1 second'", "'1 second'", "'5 milliseconds'") . ')');

		if (!$rows || !@$rows || chance(0.02))
		{
			select undef, undef, undef, 0.01;
			next;
		}
		select undef, undef, undef, rand 0.02 if chance(0.5);
		finish($self, @$rows);
	}
	return;
}

sub finish
{
	my ($self, @accounts) = @_;
	my $batch = $accounts[0][0];
	my (@done, @sql);

	for (@accounts)
	{
		my ($account, $events) = @$_[ 1, 2 ];

		if (chance(0.9))
		{
			push @done, "($batch, '$account', $events)";
		}
		else
		{
			push @sql, "SELECT gigs.retry_gig_work($batch, '$account', 'no answer', '20 milliseconds')";
		}
	}
	push @sql, 'INSERT INTO done VALUES ' . join ', ', @done if @done;

	$self->query('BEGIN');
	for my $sql (shuffled(@sql), "SELECT gigs.finish_gig_work($batch)")
	{
		try_query($self, $sql) or return;
	}
	commit($self, "work $batch");
	$self->note_down('W', $batch, scalar @done);
	return;
}

# ---------------------------------------------------------------------------
# Maintaining the database
# ---------------------------------------------------------------------------

sub maintain
{
	my ($self) = @_;
	my @tables = map { "gigs.$_" } qw(gig_event_log gig_account_sync gig_quarantine
	  gig_consumer gig_consumer_retry);

	while (1)
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
			'SELECT mend()',
			'SELECT mend()',
			"SELECT * FROM gigs.prune_gig_events('0')",
			'SELECT * FROM gigs.rebuild_gig_sync()',
			"SELECT * FROM gigs.rebuild_gig_sync('"
			  . GigClients::uuid($self->{seed}, 'permanent ' . between(0, 5)) . "')");
		my $answer = $self->query($sql);

		$self->note_down('X', "$answer->{sqlstate} $answer->{message}, in: $sql")
		  if defined $answer->{sqlstate} && $answer->{sqlstate} !~ /^(40P01|40001)$/;
		# all of these write WAL, which is not to be flushed all the time
		select undef, undef, undef, rand 0.15;
	}
	return;
}

1;
