#!/usr/bin/env ruby
# frozen_string_literal: true

# First of all, replies get a descriptor of their own and stdout becomes stderr: no
# `puts`, of a gem or of a subprocess, can come between the replies any more.
REPLIES = $stdout.dup
REPLIES.sync = true
$stdout.reopen($stderr)
$stdout.sync = true
Encoding.default_external = Encoding::UTF_8 # JSON is UTF-8, whatever LANG says

require "json"
require_relative "billing"

TASKS = {
  "billing.charge" => Billing.method(:charge),
  "example.noisy" => lambda do
    puts "puts goes to stderr"
    system("echo and so does a subprocess")
    "quiet"
  end
}.freeze

def answer(task:, args:, kwargs:, **)
  handler = TASKS.fetch(task) { raise KeyError, "unknown task #{task}" }
  { status: "ok", result: handler.call(*args, **kwargs) }
rescue StandardError, ScriptError => e
  { status: "error", type: e.class.name, message: e.message, backtrace: e.backtrace }
end

$stdin.each_line do |line|
  request = JSON.parse(line, symbolize_names: true)
  REPLIES.puts JSON.generate(id: request[:id], **answer(**request[:payload]))
end
