# Rounds of work that end with a crash of the server, after which everything is
# checked.
#
# GIGS_KILLS is how many rounds there are of each kind of crash: as many as the
# test says, or 60 with GIGS_LONG.  All random numbers come from one seed, which a
# failure prints and GIGS_SEED sets; when exactly the server crashes depends on the
# machine, too.

package GigCrash;

use strict;
use warnings;

use Digest::MD5 qw(md5);
use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigClients;
use GigLedger;
use GigServer;
use GigTest qw(:DEFAULT :dice);

# Options: name; kills, the number of rounds; and those of GigClients.
sub new
{
	my ($class, %options) = @_;
	my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;

	srand unpack 'L', md5("$seed");
	note "GIGS_SEED=$seed";
	my $server = GigServer->new($options{name});
	my $clients = GigClients->new(server => $server, seed => $seed, %options);

	return bless {
		server => $server,
		clients => $clients,
		ledger => GigLedger->new(clients => $clients),
		seed => $seed,
		rounds => 0,
		direct => [],
		kills => $ENV{GIGS_KILLS} || ($ENV{GIGS_LONG} ? 60 : $options{kills})
	}, $class;
}

sub server { return $_[0]{server} }
sub clients { return $_[0]{clients} }

# A number of GigLedger's figures.
sub figure { my ($self, $name) = @_; return $self->{ledger}{sum}{$name} }

# Runs the rounds, until something is wrong.  The kinds of crashes are given by
# their titles, each as a function, after which another may follow that is to be
# called before the round.
#
# Every check reads the whole tables, so that they are emptied after some rounds.
sub run
{
	my ($self, %crashes) = @_;
	my ($clients, $ledger) = @$self{qw(clients ledger)};

	for my $n (1 .. $self->{kills})
	{
		for my $how (shuffled(sort keys %crashes))
		{
			return if !$self->round("$n, $how", @{ $crashes{$how} });
		}
		next if $n % 2 > 0 && $n < $self->{kills};
		return if !$ledger->finish("after $n");
		$clients->forget;
		$ledger->forget;
	}
	return;
}

# Returns whether everything is well.
sub round
{
	my ($self, $title, $crash, $before) = @_;
	# the startup process may compare the pages that it replays with the originals
	my $options = chance(0.3) ? '-c wal_consistency_checking=all' : '';
	my $direct = $self->{direct};

	@$direct = shuffled('on', 'on', 'off', 'off') if !@$direct;
	$options .= ' -c gigs_webhooks.direct_writes=' . $direct->[0];
	$title .= ', direct_writes=' . shift @$direct;
	$before->() if $before;
	my @failed = $self->{clients}->run(between(50, $ENV{GIGS_LONG} ? 1500 : 500), $options, $crash);

	is("@failed", '', "$title: clients end with their server");
	$self->{rounds}++;
	return $self->{ledger}->check($title);
}

# Prints what has been done, if it took long or failed, and stops the server.
sub end
{
	my ($self) = @_;
	my $figures = join "\n", "$self->{rounds} crashes", $self->{ledger}->figures,
	  "GIGS_SEED=$self->{seed}";

	if ($ENV{GIGS_LONG} || !Test::More->builder->is_passing) { diag $figures }
	else { note $figures }
	$self->{server}->node->stop;
	return;
}

1;
