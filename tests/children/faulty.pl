# Does what no child should, when it is told to. Speaks the original protocol, or
# protocol 2 if its argument says how many tasks it serves at once.
#
# Its tasks: "pid"; "hold" signs a file when it begins and waits for another; "fault"
# does the same, and then what it is told to; "arm" keeps that for when a file is there
# ("idle"), when its stdin ends ("stop"), or for a "cancel". FAULT_AT_BOOT is a file that
# names what the next child does before all else; the child takes the file away.
use strict;
use warnings;

my $inflight = shift;
my $max_line = $ENV{LINEPOOL_MAX_LINE};
my ($id, %held, %tasks, %armed, @kept) = ('nobody');

sub write_all {
    my ($text) = @_;
    while (length $text) {
        my $written = syswrite STDOUT, $text;
        # With its stdout closed there is nothing to be said any more.
        return unless defined $written;
        substr($text, 0, $written) = '';
    }
}

sub reply { write_all(qq({"id":"$_[0]","status":"ok","result":$_[1]}\n)) }
sub hang { sleep 600 while 1 }
sub sign { open my $file, '>', $_[0] or die "$_[0]: $!"; print $file $$ }

sub with_grandchildren {
    for (1 .. $_[0]) {
        my $pid = fork // die "fork: $!";
        hang() unless $pid;
    }
}

# Not a constant, which would be in memory from the start.
sub swallow { push @kept, 'x' x (1 << $_[0]) }

# What "signal 9" and the like do besides.
my %faults = (
    'hang' => \&hang,
    'ignores TERM' => sub { $SIG{TERM} = 'IGNORE'; hang() },
    'exit 0' => sub { exit 0 },
    'exit 1' => sub { exit 1 },
    'exit 137' => sub { exit 137 },
    'segfault' => sub { my $nothing = unpack 'P8', pack 'J', 8; hang() },
    'out of memory' => sub { swallow(34); hang() },
    'closes stdin' => sub { close STDIN; hang() },
    'closes stdin, replies' => sub {
        close STDIN;
        reply($id, $$);
        while (%held) { look_at_files(); select undef, undef, undef, 0.01 }
        hang();
    },
    'closes stdout' => sub { close STDOUT; hang() },
    'closes both' => sub { close STDIN; close STDOUT; hang() },
    'half a line' => sub { write_all(qq({"id":"$id","sta)); exit 1 },
    'half a line, hangs' => sub { write_all(qq({"id":"$id","sta)); hang() },
    'no newline' => sub { write_all(qq({"id":"$id","status":"ok"})); hang() },
    'two replies' => sub { write_all(qq({"id":"$id","status":"ok","result":$$}\n) x 2) },
    'reply to another' => sub { reply('somebody else', 1) },
    'unknown status' => sub { write_all(qq({"id":"$id","status":"fine"}\n)) },
    'garbage' => sub { write_all("Loading config...\n") },
    'NUL' => sub { write_all("\0\n") },
    'invalid UTF-8' => sub { write_all("\xff\xfe\xc3\n") },
    'invalid UTF-8 in a reply' => sub {
        write_all(qq({"id":"$id","status":"ok","result":$$,"message":"\xff"}\n));
    },
    'nesting bomb' => sub { reply($id, '[' x 100_000 . ']' x 100_000) },
    'nested garbage' => sub { write_all('[' x 100_000 . "\n") },
    'number bomb' => sub { reply($id, '9' x 100_000) },
    'infinite number' => sub { reply($id, '1e999') },
    'long line' => sub { write_all('x' x ($max_line + 1) . "\n") },
    'endless line' => sub { write_all('x' x 65536) while 1 },
    'flood of stdout' => sub { write_all("flood\n" x 1000) for 1 .. 20 },
    'flood of stderr' => sub { syswrite STDERR, "flood\n" x 1000 for 1 .. 20 },
    'fork bomb' => sub { with_grandchildren(16); hang() },
    'grandchild holds pipes' => sub { with_grandchildren(1); exit 1 },
    'slow' => sub { select undef, undef, undef, 0.7 },
    'leaks memory' => sub { swallow(26); hang() },
    'leaks fds' => sub {
        while (open my $file, '<', '/dev/null') { push @kept, $file }
        pop @kept;
    },
);

sub fault {
    my ($name) = @_;
    if ($name =~ /^signal (\d+)$/) {
        # Perl, or whoever started it, may have had it ignored.
        $SIG{$_} = 'DEFAULT' for qw(HUP INT QUIT PIPE FPE);
        kill $1, $$;
        hang();
    }
    ($faults{$name} // die "no fault $name")->();
}

sub say_hello {
    write_all(qq({"op":"hello","protocol":2,"inflight":$inflight,"features":["cancel","stop"]}\n))
        if $inflight;
}

sub serve {
    my ($task, @args) = @_;
    if ($task eq 'hold' || $task eq 'fault') {
        ($held{$id}, $tasks{$id}) = @args;
        sign("$args[0].begun");
        return;
    }
    if ($task eq 'arm') {
        my ($path, $fault, $moment) = @args;
        $armed{$moment} = $fault;
        $held{nobody} = $path if $moment eq 'idle';
    }
    reply($id, $$);
}

sub take {
    my ($line) = @_;
    if ($line =~ /"op":"cancel"/) {
        ($id) = $line =~ /"id":"([^"]*)"/;
        fault($armed{cancel}) if exists $armed{cancel};
        reply($id, $$) if delete $held{$id};
        return;
    }
    return if $line =~ /"op":/;
    ($id) = $line =~ /^\{"id":"([^"]*)"/;
    my ($task) = $line =~ /"task":"(?:[^".]*\.)?([^"]*)"/;
    my ($args) = $line =~ /"args":\[([^\]]*)\]/;
    serve($task, $args =~ /"([^"]*)"/g);
}

sub look_at_files {
    for my $waiting (grep { -e $held{$_} } keys %held) {
        my $path = delete $held{$waiting};
        $id = $waiting;
        my $fault = delete $tasks{$id} // ($id eq 'nobody' ? $armed{idle} : undef);
        sign("$path.doing") if defined $fault;
        fault($fault) if defined $fault;
        if ($id eq 'nobody') { sign("$path.over") }
        else { reply($id, $$) }
    }
}

if (defined $ENV{FAULT_AT_BOOT} && open my $file, '<', $ENV{FAULT_AT_BOOT}) {
    my $name = <$file>;
    # Of the original protocol, it has been asked by now and has not read it.
    unless ($inflight) { vec(my $in = '', 0, 1) = 1; select $in, undef, undef, undef }
    if (unlink $ENV{FAULT_AT_BOOT}) {
        sign("$ENV{FAULT_AT_BOOT}.doing");
        fault($name);
    }
}
say_hello();

my $buffer = '';
while (1) {
    vec(my $in = '', fileno STDIN, 1) = 1;
    if (select $in, undef, undef, %held ? 0.01 : undef) {
        last unless sysread STDIN, $buffer, 65536, length $buffer;
        take($1) while $buffer =~ s/^([^\n]*)\n//;
    }
    look_at_files();
}
fault($armed{stop}) if exists $armed{stop};
