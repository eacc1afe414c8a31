#!/usr/bin/env perl
#
# The fuzzer's inputs as text, one a line: printable ASCII stands for itself,
# but a backslash is \\ and any other byte \xNN.
#
#   inputs.pl unpack FILE DIRECTORY   each line of a file becomes a file
#   inputs.pl pack DIRECTORY          each file becomes a line, in a fixed order
#   inputs.pl show FILE...            likewise, and in hexadecimal digits
#
# Lines that start with "#", and empty ones, are comments: an input that starts
# so is written with \x23.  A space at the end, which editors take away, is \x20.

use strict;
use warnings;

use Digest::SHA qw(sha1_hex);

sub slurp
{
	my ($path) = @_;

	open my $file, '<:raw', $path or die "$path: $!\n";
	local $/;
	my $bytes = <$file>;
	close $file;
	return defined $bytes ? $bytes : '';
}

sub to_text
{
	my ($bytes) = @_;

	$bytes =~ s/([^ -\[\]-~])/$1 eq '\\' ? '\\\\' : sprintf('\\x%02x', ord $1)/ge;
	$bytes =~ s/^#/\\x23/;
	$bytes =~ s/ \z/\\x20/;
	return $bytes;
}

sub to_bytes
{
	my ($text) = @_;

	$text =~ s/\\(?:x([0-9a-f]{2})|(\\))/defined $1 ? chr hex $1 : $2/ge;
	return $text;
}

my ($verb, @args) = @ARGV;
$verb = '' if !defined $verb;

if ($verb eq 'unpack' && @args == 2)
{
	my ($list, $directory) = @args;

	for my $line (split /\n/, slurp($list))
	{
		next if $line eq '' || $line =~ /^#/;
		my $bytes = to_bytes($line);
		my $path = "$directory/" . sha1_hex($bytes);

		open my $file, '>:raw', $path or die "$path: $!\n";
		print $file $bytes;
		close $file or die "$path: $!\n";
	}
}
elsif ($verb eq 'pack' && @args == 1)
{
	my %texts = map { to_text(slurp($_)) => 1 } glob "$args[0]/*";

	print "$_\n"
	  for sort { length $a <=> length $b || $a cmp $b }
	  grep { $_ ne '' } keys %texts;
}
elsif ($verb eq 'show' && @args > 0)
{
	for my $path (@args)
	{
		my $bytes = slurp($path);

		print length($bytes), " bytes: ", to_text($bytes), "\n";
		print "\\x", unpack('H*', $bytes), "\n";
	}
}
else
{
	die "usage: inputs.pl unpack FILE DIRECTORY | pack DIRECTORY | show FILE...\n";
}
