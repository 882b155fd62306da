# Serves bench.work: sleeps so many milliseconds, and gives the text back.
use strict;
use warnings;
use JSON::PP ();
use Time::HiRes ();

my $json = JSON::PP->new->utf8;
$| = 1;
# JSON::PP takes longer than everything else together, so it is for texts only.
while (my $line = <STDIN>) {
    my ($id) = $line =~ /"id":\s*"([^"]*)"/;
    my ($ms, $text) = (0, undef);
    if ($line !~ /"args":\s*\[\]/) {
        ($ms, $text) = @{ $json->decode($line)->{payload}{args} };
        Time::HiRes::sleep($ms / 1000) if $ms;
    }
    my $result = defined $text ? $json->allow_nonref->encode($text) : 'null';
    print qq({"id":"$id","status":"ok","result":$result}\n);
}
