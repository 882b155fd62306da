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
# exit: it turns STDOUT into STDERR, for subprocesses as well, and from then on `exit` in
# a task ends the task. Keyword arguments come as pairs behind the others; a task is
# called in scalar context. Integers beyond 64 bits are Math::BigInts, and fractions go
# with 15 digits, as Perl prints them. There are no threads here: a cancel is heard when
# the task asks whether it is cancelled.

use strict;
use warnings;
use Errno qw(EINTR);
use IO::Handle ();
use JSON::PP ();
use Scalar::Util qw(blessed);

my $PROTOCOL = $ENV{LINEPOOL_PROTOCOL} || 1;
my $MAX_LINE = $ENV{LINEPOOL_MAX_LINE} || 16 * 1024 * 1024;
my $PID      = $$;
my $JSON     = JSON::PP->new->ascii->utf8->max_depth(1_000_000);
my $EXACT    = JSON::PP->new->ascii->utf8->max_depth(1_000_000)->convert_blessed->allow_bignum;

my ($in, $out);             # the channel
my $buffer = '';            # what of it is not a line yet
my %tasks;                  # code by name
my (@waiting, $job);        # jobs; the one that runs
my (%answers, $last_seq);   # to publish, by seq
my ($leaving, $closed, $deaf, $left_with);

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
    }
    binmode $_ for $in, $out;
    STDOUT->autoflush(1);
    *CORE::GLOBAL::exit = \&_exit;
}

# It leaves the task, and not by dying: an `eval` there must not take it for an error.
sub _exit (;$) {
    my $code = @_ ? $_[0] : 0;
    CORE::exit($code) if !$job || $$ != $PID;
    $left_with = "exit($code) in a task";
    no warnings 'exiting';
    eval { last LINEPOOL_TASK };
    die "$left_with, and in a callback, which Perl cannot leave\n";
}

sub task {
    my ($class, $name, $code) = @_;
    $tasks{$name} = $code;
    return;
}

# The job that runs, for code that does not get it handed.
sub job { $job }

# Serves tasks until the worker or SIGTERM ends it.
sub run {
    require "$ENV{LINEPOOL_CHECK}/check.pl" if $ENV{LINEPOOL_CHECK};
    local $SIG{INT}  = sub { };    # 'IGNORE' would be inherited by subprocesses
    local $SIG{TERM} = sub { $leaving = 1 };
    # No ping: while a task runs there is nobody to answer it.
    _write(op => 'hello', protocol => 2, language => 'perl', tasks => [sort keys %tasks],
        features => ['cancel', 'stop'])
        if $PROTOCOL >= 2;
    until ($leaving) {
        if    ($job = shift @waiting) { _serve() }
        elsif ($closed)               { last }
        else                          { _listen(1) } # a signal may have come just before
    }
    1 while _listen(0);
    my @restart = (status => 'restart');
    @restart = (status => 'throttled', retry_after_secs => 0) if $PROTOCOL < 2;
    _write(id => $_->id, @restart) for @waiting; # another child may run it at once
    return;
}

sub _serve {
    my ($reply, @died_at);
    $left_with = 'a loop control left the task';
LINEPOOL_TASK: {
        local $SIG{__DIE__} = sub { @died_at = _frames() };
        eval { $reply = { status => 'ok', result => scalar $job->_run }; 1 }
            or $reply = _failure($@, @died_at);
    }
    $reply //= { status => 'error', type => 'exit', message => $left_with };
    if ($$ != $PID) {    # it came back from the task that made it
        print STDERR "$reply->{message}\n" if $reply->{status} eq 'error';
        CORE::exit($reply->{status} ne 'ok');
    }
    _reply($reply);
    return;
}

sub _reply {
    my ($reply) = @_;
    my $id = $job->id;
    undef $job;
    eval { _write(%$reply, id => $id); 1 } or _write(%{ _failure($@) }, id => $id);
    return;
}

END {    # an `exit` in what was compiled before this file
    local $?;
    _reply({ status => 'error', type => 'exit', message => 'exit in a task' })
        if $job && $$ == $PID;
}

sub _failure {
    my ($error, @frames) = @_;
    return {%$error} if blessed $error && $error->isa('Linepool::Outcome');
    my ($type, $message) = _describe($error);
    while (blessed $error && @frames < 200) {
        my ($method) = grep { $error->can($_) } qw(cause previous_exception) or last;
        defined($error = eval { $error->$method }) or last;
        push @frames, sprintf 'caused by %s: %s', _describe($error);
    }
    return { status => 'error', type => $type, message => $message, backtrace => \@frames };
}

sub _describe {
    my ($error) = @_;
    my $message = eval { (blessed $error && $error->can('message') ? $error->message : $error) . '' };
    $message //= 'an error without a message';
    $message =~ s/\n\z//;
    return (ref $error || 'die', substr $message, 0, 65_536);
}

sub _frames {
    my @frames;
    for (my $level = 1; my ($package, $file, $line, $sub) = caller $level; $level++) {
        my $what = $level == 1 ? 'died' : "$sub called";
        push @frames, "$what at $file line $line" if $file ne __FILE__;
    }
    return @frames;
}

# Hears what has come, and waits for it so many seconds; false if nothing came.
sub _listen {
    my ($seconds) = @_;
    vec(my $ready = '', fileno $in, 1) = 1;
    return 0 if $deaf || select($ready, undef, undef, $seconds) < 1;
    my $from = length $buffer;
    my $size = sysread $in, $buffer, 65_536, $from;
    return 0 if !defined $size && $! == EINTR;
    return !($deaf = $closed = 1) if !$size;
    while ((my $end = index $buffer, "\n", $from) >= 0) {
        _take(substr $buffer, 0, $end + 1, '');
        $from = 0;
    }
    return 1;
}

sub _take {
    my ($line) = @_;
    my $message = ($line =~ /[0-9]{20}/ ? $EXACT : $JSON)->decode($line);
    my ($op, $id, $seq) = @$message{qw(op id seq)};
    if (!defined $op) {
        push @waiting, bless { %{ $message->{payload} }, id => $id }, 'Linepool::Job';
    }
    elsif ($op eq 'cancel') {
        $_->{cancelled} = $message->{reason} for grep { $_ && $_->id eq $id } $job, @waiting;
    }
    $answers{$seq} = $message if $op && $op eq 'answer' && exists $answers{$seq};
    $closed = 1 if $op && $op eq 'stop';
    return;
}

sub _write {
    my %line = @_;
    my $text = $EXACT->encode(\%line);
    # Perl has numbers that JSON has not.
    $EXACT->decode($text) if $text =~ /[:,\[]-?(?:nan|inf)/i;
    die length $text, " bytes in a line, the limit is $MAX_LINE\n" if length $text > $MAX_LINE;
    $text .= "\n";
    while (length $text) {
        my $size = syswrite $out, $text;
        CORE::exit(1) if !defined $size && $! != EINTR;    # nobody is left to reply to
        substr $text, 0, $size || 0, '';
    }
    return;
}

# What a task dies of to end in another way than with a result or an error.
package Linepool::Outcome;

use overload '""' => sub { "a task that ends as $_[0]{status}" }, fallback => 1;

# The task that runs. `meta` is all that the worker tells about it.
package Linepool::Job;

sub _run {
    my ($self) = @_;
    my $code = $tasks{ $self->name } or die 'unknown task ', $self->name, "\n";
    return scalar $code->($self, @{ $self->args }, %{ $self->kwargs });
}

sub id     { $_[0]{id} }
sub name   { $_[0]{task} }
sub args   { $_[0]{args} || [] }
sub kwargs { $_[0]{kwargs} || {} }
sub meta   { $_[0]{meta} || {} }

sub retries { $_[0]{meta}{retries} || 0 }

# Seconds since 1970, or undef; the child is killed then.
sub deadline { $_[0]{meta}{deadline} }

# undef, or why to end soon: 'soft_time_limit', 'revoked' or 'shutdown'.
sub cancelled {
    my ($self) = @_;
    Linepool::_listen(0);
    return $self->{cancelled};
}

# Ends the task if it is cancelled: for loops that take long.
sub check { $_[0]->_end('cancelled') if defined $_[0]->cancelled }

sub progress {
    my ($self, %meta) = @_;
    return $self->_event(op => 'progress', meta => \%meta);
}

sub log {
    my ($self, $message, $level) = @_;
    $level //= 'info';
    print STDERR "$level: $message\n" if $PROTOCOL < 2;
    return $self->_event(op => 'log', level => $level, message => "$message");
}

# Sends a task, now or once this one has succeeded; returns its id.
sub publish {
    my ($self, $task, %options) = @_;
    my ($args, $kwargs, $on_success) = delete @options{qw(args kwargs on_success)};
    my $seq = ++$last_seq;
    $answers{$seq} = undef;
    $self->_event(op => 'publish', seq => $seq, task => $task, args => $args || [],
        kwargs => $kwargs || {}, options => \%options, when => $on_success ? 'success' : 'now')
        or die "not published: only a task that runs can, and in protocol 2\n";
    Linepool::_listen(60) until $answers{$seq} || $deaf;
    my $answer = delete $answers{$seq} || { error => 'the channel has ended' };
    die "not published: $answer->{error}\n" if defined $answer->{error};
    return $answer->{task_id};
}

# Nothing is written after the reply, not even by a job that somebody has kept.
sub _event {
    my ($self, %event) = @_;
    return 0 if $PROTOCOL < 2 || !$job || $self != $job || $$ != $PID;
    Linepool::_write(%event, id => $self->id);
    return 1;
}

# These four end the task, too. The first counts, as long as it may be; the second does not.
sub retry {
    my ($self, $message, %options) = @_;
    my %after = defined $options{after} ? (retry_after_secs => 0 + $options{after}) : ();
    $self->_end('retry', defined $message ? (message => "$message") : (), %after);
}

sub throttle { $_[0]->_end('throttled', retry_after_secs => 0 + ($_[1] // 60)) }

# With `requeue => 1` its message is delivered again.
sub reject {
    my ($self, %options) = @_;
    $self->_end('rejected', requeue => $options{requeue} ? JSON::PP::true : JSON::PP::false);
}

sub ignore { $_[0]->_end('ignored') }

sub _end {
    my ($self, $status, %fields) = @_;
    die bless { status => $status, %fields }, 'Linepool::Outcome';
}

1;
