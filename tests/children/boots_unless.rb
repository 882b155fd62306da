# Boots, unless the file that it is given exists: then it ends with a reason on stderr.
# With "hello" after it, it says when it has booted.
require "json"

if File.exist?(ARGV[0])
  warn "no such gem: invoices"
  exit 7
end

STDOUT.sync = true
puts JSON.generate(op: "hello", protocol: 2, tasks: ["any"]) if ARGV[1] == "hello"
STDIN.each_line("\n") do |line|
  puts JSON.generate(id: JSON.parse(line)["id"], status: "ok", result: Process.pid)
end
