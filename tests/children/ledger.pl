# Does what may be done once: an entry in a folder, under the task's id. Writes down each
# run of its own into a file, with the host that it runs on.
use strict;
use warnings;
use Fcntl;
use JSON::PP;

$| = 1;
my ($ledger, $runs) = @ARGV;

while (my $line = <STDIN>) {
    my $id = decode_json($line)->{id};
    open(my $file, ">>", $runs) or die "$runs: $!";
    syswrite($file, "$ENV{LINEPOOL_TEST_HOST} $id\n");
    close($file);
    select(undef, undef, undef, 0.1);
    my $first = sysopen(my $entry, "$ledger/$id", O_WRONLY | O_CREAT | O_EXCL);
    die "$ledger/$id: $!" unless $first || $!{EEXIST};
    print encode_json({ id => $id, status => "ok", result => $first ? 1 : 0 }), "\n";
}
