# Says the id of each request, and some time later a line that has none.
require "json"

$stdout.sync = true
$stdin.each_line("\n") do |line|
  puts JSON.generate(id: JSON.parse(line)["id"], status: "ok", result: "mine")
  sleep 0.05
  puts JSON.generate(status: "ok", result: "stray")
end
