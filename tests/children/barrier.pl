# Each task waits until as many others as it says have come to the same folder.
use strict;
use warnings;
use JSON::PP;

$| = 1;

while (my $line = <STDIN>) {
    my $request = decode_json($line);
    my ($folder, $count) = @{ $request->{payload}{args} };
    open(my $file, ">", "$folder/$request->{id}") or die "$folder: $!";
    close($file);
    while (1) {
        my @arrived = glob("$folder/*");
        last if @arrived >= $count;
        select(undef, undef, undef, 0.01);
    }
    my %reply = (id => $request->{id}, status => "ok", result => $$);
    print encode_json(\%reply), "\n";
}
