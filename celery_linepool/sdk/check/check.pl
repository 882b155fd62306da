# The tasks that the worker's check asks for; Linepool.pm loads this file.
package Linepool::Check;

use strict;
use warnings;
use Time::HiRes qw(sleep time);

my %ends = (
    retry     => sub { $_[0]->retry(undef, after => $_[1]) },
    throttled => sub { $_[0]->throttle($_[1]) },
    rejected  => sub { $_[0]->reject },
    ignored   => sub { $_[0]->ignore },
);

my %tasks = (
    echo => sub {
        my ($job) = @_;
        return { args => $job->args, kwargs => $job->kwargs };
    },
    sleep => sub {
        my ($job, $seconds) = @_;
        for (my $end = time + $seconds; time < $end; sleep 0.02) {
            $job->check;
        }
        return $seconds;
    },
    fail => sub {
        my ($job, $message) = @_;
        die Linepool::Check::Error->new($message, Linepool::Check::Error->new('the cause'));
    },
    exit => sub { exit $_[1] },
    end  => sub {
        my ($job, $status, $seconds) = @_;
        my $end = $ends{$status} or die "no status of a task: $status\n";
        $end->($job, $seconds);
    },
    print => sub {
        my ($job, $text) = @_;
        utf8::encode($text);
        print "$text\n";
        system 'echo', $text;
        return;
    },
    stderr => sub {
        my ($job, $bytes) = @_;
        print STDERR 'x' x $bytes;
        return;
    },
    big     => sub { 'x' x $_[1] },
    context => sub {
        my ($job) = @_;
        return { id => $job->id, retries => $job->retries, deadline => $job->deadline };
    },
    events => sub {
        my ($job, $count) = @_;
        $job->progress(step => $_) for 1 .. $count;
        $job->log('checked', 'warning');
        return $count;
    },
    publish => sub {
        my ($job, $task, $when) = @_;
        return $job->publish($task, args => [7], on_success => $when eq 'success');
    },
    spawn => sub {
        my $pid = fork // die "no fork: $!";
        return $pid if $pid;
        exec 'sleep', 30 or die "no sleep: $!";
    },
);

Linepool->task("linepool.check.$_" => $tasks{$_}) for keys %tasks;

package Linepool::Check::Error;

sub new {
    my ($class, $message, $cause) = @_;
    return bless { message => $message, cause => $cause }, $class;
}

sub message { $_[0]{message} }
sub cause   { $_[0]{cause} }

1;
