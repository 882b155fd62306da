# Returns its first argument as it came: Ruby keeps integers of any size.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  result = request.dig("payload", "args", 0)
  $stdout.puts(JSON.generate("id" => request["id"], "status" => "ok", "result" => result))
end
