# Closes its stdout once instead of replying, and lives on.
use strict;
use warnings;
use JSON::PP;

$| = 1;

while (my $line = <STDIN>) {
    my $request = decode_json($line);
    my $mark = $request->{payload}{args}[0];
    unless (-e $mark) {
        open(my $file, ">", $mark) or die "$mark: $!";
        close(STDOUT);
        sleep 600;
    }
    my %reply = (id => $request->{id}, status => "ok", result => $$);
    print encode_json(\%reply), "\n";
}
