# frozen_string_literal: true

# What happens to one row of ../data/invoices.csv. Money is counted in cents.
module Billing
  module_function

  def charge(row)
    net = row[:quantity] * row[:unit_cents]
    tax = (net * row[:vat_percent] + 50) / 100
    total = net + tax
    first = total - total / row[:instalments] * (row[:instalments] - 1)
    iban_ok = iban_ok?(row[:iban])
    risk = (iban_ok ? 0 : 60) + (row[:iban].start_with?(row[:country]) ? 0 : 20) +
           (total < 1_000_000 ? 0 : 15)
    { invoice: row[:invoice], customer: row[:customer], tax_cents: tax,
      total_cents: total, total: format_money(total, row[:currency]),
      first_instalment_cents: first, iban_ok: iban_ok, risk: risk, pid: Process.pid }
  end

  def iban_ok?(iban)
    (iban[4..] + iban[0, 4]).chars.map { |char| char.to_i(36) }.join.to_i % 97 == 1
  end

  def format_money(cents, currency)
    whole = (cents / 100).to_s.gsub(/(\d)(?=(\d{3})+$)/, '\1,')
    format("%s.%02d %s", whole, cents % 100, currency)
  end
end
