# frozen_string_literal: true

require_relative "linepool" # first: from here on stdout is stderr

Linepool.task("example.add") do |a, b, round_to: nil|
  sum = a + b
  round_to ? sum.round(round_to) : sum
end

Linepool.run(inflight: 4)
