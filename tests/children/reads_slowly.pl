# Reads its request a kilobyte at a time and answers with its length in bytes.
my ($total, $last) = (0, "");
while ($last ne "\n") {
    my $count = sysread(STDIN, my $data, 1024);
    exit 1 unless $count;
    $total += $count;
    $last = substr($data, -1);
}
syswrite(STDOUT, "{\"status\":\"ok\",\"result\":$total}\n");
sysread(STDIN, my $rest, 1);
