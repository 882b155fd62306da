# frozen_string_literal: true

# A child of the original protocol: it serves every task, and gives its arguments back.
require "json"
$stdout.sync = true
while (line = $stdin.gets)
  request = JSON.parse(line)
  puts JSON.generate(id: request["id"], status: "ok", result: request["payload"]["args"])
end
