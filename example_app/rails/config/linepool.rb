# The tasks of the shop, as config/routes.rb has its pages. What a task does is in app/,
# where it is reloaded in development; here it gets its name.

Linepool.task("invoices.create") { |attributes| Invoice.create!(attributes).id }

# A task that is delivered twice charges once: its id is the key.
Linepool.task("invoices.charge") do |invoice_id|
  charge = Invoice.find(invoice_id).charge!(id)
  { charge: charge.id, amount_cents: charge.amount_cents }
end

Linepool.task("invoices.import") do |path|
  Invoice.import(path) { |done, total| progress(done: done, total: total) }
end

Linepool.task("invoices.remind") do |invoice_id|
  InvoiceMailer.reminder(Invoice.find(invoice_id)).deliver_now.message_id
end

# Sends a task for each; the caller gets their ids and may wait for them.
Linepool.task("invoices.collect") do
  Invoice.unpaid.ids.map { |invoice_id| publish("invoices.charge", args: [invoice_id]) }
end

Linepool.task("reports.unpaid") do
  ApplicationController.render(template: "reports/unpaid", assigns: { invoices: Invoice.unpaid })
end

Linepool.task("rates.fetch") do |currency|
  Rates.fetch(currency)
rescue Rates::Limited => e
  raise Linepool::Throttle.new(after: e.retry_after)
end
