# Writes to stdout without an end of line and without an end, in its first task.
use strict;
use warnings;
use JSON::PP;

$| = 1;

while (my $line = <STDIN>) {
    my $request = decode_json($line);
    my $mark = $request->{payload}{args}[0];
    unless (-e $mark) {
        open(my $file, ">", $mark) or die "$mark: $!";
        while (1) { print "x" x 65_536 }
    }
    my %reply = (id => $request->{id}, status => "ok", result => $$);
    print encode_json(\%reply), "\n";
}
