# Says every reply twice, in one write.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  result = [request.dig("payload", "args", 0), Process.pid]
  reply = JSON.generate("id" => request["id"], "status" => "ok", "result" => result)
  $stdout.syswrite("#{reply}\n#{reply}\n")
end
