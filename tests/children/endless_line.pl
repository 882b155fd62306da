# Writes 24 MB to stderr without one newline, and ends.
my $block = "x" x 65536;
syswrite(STDERR, $block) for 1 .. 366;
