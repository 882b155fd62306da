# A shop's billing: charges, or refuses with a class of its own and frames to look at.
require "json"

OUT = STDOUT.dup
OUT.sync = true
STDOUT.reopen(STDERR)

module Billing
  class CardDeclined < StandardError; end

  def self.charge(invoice)
    return { charged: invoice } unless invoice.zero?

    decline("no money left")
  end

  def self.decline(why)
    raise CardDeclined, why
  end
end

STDIN.each_line("\n") do |line|
  request = JSON.parse(line)
  reply =
    begin
      { status: "ok", result: Billing.charge(*request["payload"]["args"]) }
    rescue StandardError => e
      { status: "error", type: e.class.name, message: e.message, backtrace: e.backtrace }
    end
  OUT.puts JSON.generate(reply.merge(id: request["id"]))
end
