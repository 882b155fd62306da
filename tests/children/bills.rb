# A shop's billing: charges, or refuses with a class of its own and frames to look at.
require "json"

OUT = STDOUT.dup
OUT.sync = true
STDOUT.reopen(STDERR)

module Billing
  CardDeclined = Class.new(StandardError)
  Broken = Class.new(StandardError)

  def self.charge(invoice)
    return { charged: invoice } unless invoice.zero?

    decline("no money left")
  rescue NoMethodError
    raise Broken, "no such invoice"
  end

  def self.decline(why)
    raise CardDeclined, why
  end

  # With its causes, as the helper library has it.
  def self.trace(error)
    cause = error.cause
    causes = cause ? ["caused by #{cause.class}: #{cause.message}", *trace(cause)] : []
    error.backtrace + causes
  end
end

STDIN.each_line("\n") do |line|
  request = JSON.parse(line)
  reply =
    begin
      { status: "ok", result: Billing.charge(*request["payload"]["args"]) }
    rescue StandardError => e
      { status: "error", type: e.class.name, message: e.message, backtrace: Billing.trace(e) }
    end
  OUT.puts JSON.generate(reply.merge(id: request["id"]))
end
