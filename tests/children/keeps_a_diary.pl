# Writes into a file when it is born and when its stdin has ended. If another file is
# named it does not end before that is there. Answers with its pid.
use strict;
use warnings;
use JSON::PP;

$| = 1;
my ($diary, $gate) = @ARGV;

sub note {
    open(my $file, ">>", $diary) or die "$diary: $!";
    syswrite($file, "$_[0] $$\n");
}

note("born");
while (my $line = <STDIN>) {
    my $request = decode_json($line);
    print encode_json({ id => $request->{id}, status => "ok", result => $$ }), "\n";
}
note("asked to end");
while (defined $gate && !-e $gate) {
    select(undef, undef, undef, 0.01);
}
note("ended");
