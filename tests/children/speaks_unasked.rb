# Prints a banner on stdout when it has booted.
puts "Booted in 0.1 s"
$stdout.flush
$stdin.read
