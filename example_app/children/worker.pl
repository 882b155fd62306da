#!/usr/bin/env perl
use strict;
use warnings;
use Carp qw(longmess);
use FindBin;
use IO::Handle;
use JSON::PP;

# First of all, replies get a descriptor of their own and stdout becomes stderr: no
# print, of a module or of a subprocess, can come between the replies any more.
my $replies;
BEGIN {
    open($replies, '>&', \*STDOUT) or die "cannot duplicate stdout: $!";
    open(STDOUT, '>&', \*STDERR) or die "cannot redirect stdout: $!";
    $replies->autoflush(1);
    STDOUT->autoflush(1);
}

use lib $FindBin::Bin;
use Billing;

my %tasks = (
    'billing.charge' => \&Billing::charge,
    'example.noisy'  => sub {
        print "print goes to stderr\n";
        system 'echo and so does a subprocess';
        return 'quiet';
    },
);

sub answer {
    my ($task, $args, $kwargs) = @{ $_[0] }{qw(task args kwargs)};
    my $stack = '';
    # The stack is gone once eval has caught an error: note it when it is raised.
    local $SIG{__DIE__} = sub { $stack = longmess('') };
    my $result = eval {
        my $handler = $tasks{$task} or die "unknown task $task\n";
        $handler->(@$args, %$kwargs);
    };
    return { status => 'ok', result => $result } unless $@;
    chomp(my $message = "$@");
    return {
        status => 'error', type => ref $@ || 'die', message => $message,
        backtrace => [ map { s/^\s+//r } split /\n/, $stack ],
    };
}

my $json = JSON::PP->new->utf8;
while (my $line = <STDIN>) {
    my $request = $json->decode($line);
    my $reply   = answer($request->{payload});
    print $replies $json->encode({ id => $request->{id}, %$reply }), "\n";
}
