# frozen_string_literal: true

# What `celery linepool check` asks for: docs/protocol.md, section 10.

Linepool.task("linepool.check.echo") { |*args, **kwargs| { args: args, kwargs: kwargs } }

Linepool.task("linepool.check.sleep") do |seconds|
  now = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
  ending = now.call + seconds
  while (left = ending - now.call).positive?
    check
    sleep [left, 0.02].min
  end
  seconds
end

Linepool.task("linepool.check.fail") do |message|
  raise ArgumentError, "the cause"
rescue ArgumentError
  raise message
end

Linepool.task("linepool.check.exit") { |code| exit code }

Linepool.task("linepool.check.end") do |status, seconds|
  case status
  when "retry" then raise Linepool::Retry.new(after: seconds)
  when "throttled" then raise Linepool::Throttle.new(after: seconds)
  when "rejected" then raise Linepool::Reject
  when "ignored" then raise Linepool::Ignore
  else raise ArgumentError, "no such status: #{status}"
  end
end

Linepool.task("linepool.check.print") do |text|
  puts text
  system("echo", text)
  nil
end

Linepool.task("linepool.check.stderr") do |bytes|
  $stderr.write("x" * bytes)
  nil
end

Linepool.task("linepool.check.big") { |bytes| "x" * bytes }

Linepool.task("linepool.check.context") do
  { id: id, retries: retries, deadline: deadline&.to_f }
end

Linepool.task("linepool.check.events") do |count|
  1.upto(count) { |n| progress(step: n) }
  log("checked", level: :warning)
  count
end

Linepool.task("linepool.check.publish") do |task, on|
  publish(task, args: [7], on_success: on == "success")
end

Linepool.task("linepool.check.spawn") do
  Process.spawn("sleep", "30").tap { |pid| Process.detach(pid) }
end
