# Answers with its pid; prints a line on its stdout whenever it gets USR1.
require "json"

$stdout.sync = true
trap("USR1") { $stdout.write("a debugging aid\n") }

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  puts JSON.generate("id" => request["id"], "status" => "ok", "result" => Process.pid)
end
