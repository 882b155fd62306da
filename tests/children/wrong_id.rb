# Replies once to an id that nobody asked about.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  mark = request.dig("payload", "args", 0)
  reply = { "id" => request["id"], "status" => "ok", "result" => Process.pid }
  unless File.exist?(mark)
    File.write(mark, "")
    warn "grandchild #{spawn('sleep', '600')}"
    reply["id"] = "somebody-elses"
  end
  $stdout.puts(JSON.generate(reply))
end
