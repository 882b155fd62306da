use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Linepool;    # first: from here on STDOUT is STDERR

Linepool->task('example.add' => sub {
    my ($job, $x, $y, %options) = @_;
    return defined $options{round_to} ? 0 + sprintf("%.$options{round_to}f", $x + $y) : $x + $y;
});

Linepool->run;
