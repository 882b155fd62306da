package Linepool;

# Serves Celery tasks to a celery-linepool worker.
#
#     use Linepool;
#
#     Linepool->task('billing.charge' => sub {
#         my ($job, $amount, %options) = @_;
#         $job->progress(step => 'charging');
#         return { charged => $amount, currency => $options{currency} // 'EUR' };
#     });
#
#     Linepool->run;
#
# This file needs Perl 5.14 and nothing else; copy it. Use it before what may print or
# exit: it turns STDOUT into STDERR, for subprocesses as well, and from then on `exit`
# in a task ends the task. Keyword arguments come as pairs behind the others. There are
# no threads here: a cancel is heard when the task asks `$job->cancelled`. Integers of
# more than 64 bits become strings.

use strict;
use warnings;
use Errno qw(EINTR EPIPE);
use JSON::PP ();
use POSIX ();

my ($in, $out);

BEGIN {
    if (($ENV{LINEPOOL_CHANNEL} // '') eq 'fd') {
        open $in,  '<&=', 3 or die "no channel in: $!";
        open $out, '>&=', 4 or die "no channel out: $!";
    }
    else {
        open $in,  '<&', \*STDIN  or die "no channel in: $!";
        open $out, '>&', \*STDOUT or die "no channel out: $!";
        # A subprocess that reads STDIN would swallow requests.
        open STDIN,  '<',  '/dev/null' or die "no /dev/null: $!";
        open STDOUT, '>&', \*STDERR    or die "no stderr: $!";
        STDOUT->autoflush(1);
    }
    binmode $_ for $in, $out;

    # It leaves the task, and not by dying: an `eval` must not take it for an error.
    no warnings 'exiting';
    *CORE::GLOBAL::exit = sub (;$) {
        my $code = @_ ? $_[0] : 0;
        CORE::exit($code) unless Linepool::Child->exits($code);
        last LINEPOOL_TASK;
    };
}

my $child = Linepool::Child->new;

sub task {
    my ($class, $name, $code) = @_;
    $child->{tasks}{$name} = $code;
    return;
}

# Serves tasks until the worker or SIGTERM ends it.
sub run { $child->serve }

# What a task dies of to end in another way than with a result or an error.
package Linepool::Outcome;

use overload '""' => sub { "a task that ends as $_[0]{status}" }, fallback => 1;

sub throw { my ($class, %reply) = @_; die bless {%reply}, $class }
