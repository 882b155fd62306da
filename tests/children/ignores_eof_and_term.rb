# Goes on whatever happens to its stdin, and so does its own child: only SIGKILL ends it.
require "json"

trap("TERM", "IGNORE")
spawn("exec sleep 600")
$stdout.sync = true
loop do
  line = $stdin.gets
  if line.nil?
    sleep
  else
    request = JSON.parse(line)
    sleep if request["payload"]["task"].start_with?("hang")
    puts JSON.generate("id" => request["id"], "status" => "ok", "result" => Process.pid)
  end
end
