# Writes 100 MB to stderr before each reply.
use strict;
use warnings;
use JSON::PP;

$| = 1;
my $megabyte = ("x" x 999 . "\n") x 1000;

while (my $line = <STDIN>) {
    my $request = decode_json($line);
    print STDERR $megabyte for 1 .. 100;
    my %reply = (id => $request->{id}, status => "ok", result => $$);
    print encode_json(\%reply), "\n";
}
