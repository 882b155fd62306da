# USR1 ends its task early, QUIT asks where it hangs, and TERM it only takes note of.
require "json"

$stdout.sync = true
warned = false
trap("USR1") { warned = true }
trap("QUIT") { $stderr.write("it hangs in #{caller(1, 1).first}\n") }
trap("TERM") { $stderr.write("TERM came\n") }

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  sleep 0.01 until warned || request["payload"]["task"] != "hang"
  puts JSON.generate("id" => request["id"], "status" => "ok", "result" => Process.pid)
end
