class Charge < ApplicationRecord
  belongs_to :invoice
  has_many :entries

  # Both sides of the ledger: their sum is always zero.
  def post
    entries.create!(account: "cash", amount_cents: amount_cents)
    entries.create!(account: "receivables", amount_cents: -amount_cents)
  end
end
