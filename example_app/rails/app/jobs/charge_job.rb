class ChargeJob < ApplicationJob
  retry_on ActiveRecord::Deadlocked

  # An invoice from Rails, or the id of one from Python.
  def perform(invoice)
    invoice = Invoice.find(invoice) unless invoice.is_a?(Invoice)
    invoice.charge!(job_id).amount_cents
  end
end
