require "csv"

class Invoice < ApplicationRecord
  has_many :charges

  validates :number, presence: true
  validates :email, format: /@/
  validates :amount_cents, numericality: { greater_than: 0 }

  scope :unpaid, -> { where(paid_at: nil).order(:number) }

  # Adds the invoices of a CSV file, and says after each how many of how many.
  def self.import(path)
    rows = CSV.read(path, headers: true)
    transaction do
      rows.each.with_index(1) do |row, done|
        create!(row.to_h)
        yield done, rows.size
      end
    end
    rows.size
  end

  # Charges it once for a key, however often it is called.
  def charge!(key)
    transaction do
      charge = charges.create!(key: key, amount_cents: amount_cents)
      charge.post
      update!(paid_at: Time.current)
      charge
    end
  rescue ActiveRecord::RecordNotUnique
    charges.find_by!(key: key)
  end

  def amount
    format("%.2f EUR", amount_cents / 100r)
  end
end
